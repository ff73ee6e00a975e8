"""What is trained and what holds it back: adapters of low rank, a pull towards the start, KL to the base model.

In: the model as it was loaded and a variant's `tuning`. Out: what anamnesis/training.py puts into its engine, and the
full weights of a model with adapters. Every method works under every ZeRO stage; docs/training.md has the formulae.
"""

import re
from collections.abc import Mapping
from typing import Any

from anamnesis.errors import UserError
from anamnesis.records import seed_of
from anamnesis.variants import L2SP, Lora, Method

ADAPTER = "default"  # peft's name of the only one


def adapt(model: Any, lora: Lora, seed: int) -> None:
    """Put adapters beside the linear layers of `model` and freeze all else; they start as no change at all.

    The same on every rank: the matrix that is drawn comes from `seed`. Raises `UserError` where no layer has a name of
    `targets`, or one has that can't be merged.
    """
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    targets = lora.targets or linear_layers(model)
    if not targets:
        raise UserError(f"tuning: lora finds no linear layer in {type(model).__name__}; take another method")
    _can_be_merged(model, targets)
    torch.manual_seed(seed_of(seed, "lora"))
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
    )
    try:
        inject_adapter_in_model(config, model, ADAPTER)
    except ValueError as error:
        raise UserError(f"tuning.targets: {' '.join(str(error).split())}") from None


def _can_be_merged(model: Any, targets: list[str]) -> None:
    """Raise `UserError` for a layer of `targets` whose adapter `merged` could not add to weights of its own."""
    import torch

    owners: dict[int, list[str]] = {}
    for name, part in model.named_modules():
        for weight in part.parameters(recurse=False):
            owners.setdefault(id(weight), []).append(name)
    for name, part in model.named_modules():
        if not any(name == target or name.endswith(f".{target}") for target in targets):
            continue
        if not isinstance(part, torch.nn.Linear):
            kind = type(part).__name__
            raise UserError(f"tuning.targets: {name} is no linear layer but {kind}; name linear ones, or none for all")
        if others := [other for other in owners[id(part.weight)] if other != name]:
            raise UserError(f"tuning.targets: {name} has one weight with {', '.join(others)}; leave it out")


def linear_layers(model: Any) -> list[str]:
    """The last parts of the names of all linear layers but the head over the vocabulary."""
    import torch

    head = model.get_output_embeddings()
    found = {name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and part is not head}
    return sorted({name.rpartition(".")[2] for name in found})


def merged(weights: Mapping[str, Any], lora: Lora) -> dict[str, Any]:
    """Full weights by their names in the base model: W + alpha / rank · B A where a layer had an adapter, in fp32."""
    full = {}
    for name, weight in weights.items():
        if re.search(r"\.lora_[AB]\.", name):
            continue
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            first, second = (weights[f"{layer}.lora_{half}.{ADAPTER}.weight"].float() for half in "AB")
            full[f"{layer}.weight"] = (weight.float() + lora.alpha / lora.rank * (second @ first)).contiguous()
        else:
            full[name.replace(".base_layer.", ".")] = weight
    return full


def remove_adapters(model: Any) -> None:
    """Take the adapters out of `model` without adding them: it is only asked for its configuration and its names."""
    from peft.tuners.lora import LoraLayer

    for name, part in list(model.named_modules()):
        if isinstance(part, LoraLayer):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, part.base_layer)


def optimizer(groups: list[dict[str, Any]], method: Method) -> Any:
    """torch's fused AdamW over `groups`; under L2-SP one that also pulls towards the weights it began with."""
    import torch

    if not isinstance(method, L2SP):
        return torch.optim.AdamW(groups, lr=0.0, fused=True)
    return pulled_adamw()(groups, method.strength, lr=0.0, fused=True)


def pulled_adamw() -> type:
    """AdamW whose gradients have strength · (w - w0) added: those of strength / 2 · sum (w - w0)².

    `w` are whatever tensors DeepSpeed gives the optimiser: under ZeRO this rank's part of the fp32 master weights, so
    that no rank holds more than its part of the start. The start is part of the optimiser's state, and so of a
    checkpoint. It is added after the gradients of the data were clipped.
    """
    import torch

    class PulledAdamW(torch.optim.AdamW):
        def __init__(self, groups: list[dict[str, Any]], strength: float, **options: Any) -> None:
            super().__init__(groups, **options)
            self.strength = strength

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            """AdamW's own, after the pull was added to every gradient."""
            starts = {}
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is None:
                        continue
                    start = self.state[weight].pop("start", None)  # AdamW takes a state that isn't empty for its own
                    starts[weight] = start = weight.detach().clone() if start is None else start
                    weight.grad.add_((weight - start).to(weight.grad.dtype), alpha=self.strength)
            result = super().step(closure)
            for weight, start in starts.items():
                self.state[weight]["start"] = start
            return result

    return PulledAdamW


def divergence(reference: Any, logits: Any) -> Any:
    """The sum over positions of KL(reference || model), a scalar in nats; both are logits, [positions, vocabulary]."""
    import torch

    return torch.nn.functional.kl_div(
        logits.float().log_softmax(-1), reference.float().log_softmax(-1), reduction="sum", log_target=True
    )
