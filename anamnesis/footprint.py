"""What a process of training holds in memory at its greatest moment, counted from a model's shape and the settings.

In: a model's config.json, of which nothing but shapes is built; the `train` section of params.yaml; a variant's
`tuning`; how many processes share the work. Out: bytes. docs/training.md has the formulae, where they are from, and how
far measured runs lie from them.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anamnesis.errors import UserError
from anamnesis.ranks import choose_accelerator
from anamnesis.sections import OFFLOAD_FROM, Train
from anamnesis.variants import KL, L2SP, Lora, Method

MASTER, ADAM, SUM = 4, 8, 4  # bytes a weight: the fp32 copy, AdamW's two moments in fp32, a gradient summed in fp32
LOSS, LOSS_KL = 12, 40  # bytes a token and word of the vocabulary at the loss's greatest moment, by a profiler
REDUCED = 500_000_000  # gradients that DeepSpeed's stage 0 lays side by side for one all-reduce
OFFLOADS = tuple(OFFLOAD_FROM)


@dataclass(frozen=True)
class Shape:
    """What of a model decides on memory; `linear` are (in, out) of each linear layer's weight, by name."""

    weights: int
    largest: int  # weights of its largest matrix
    linear: tuple[tuple[str, int, int], ...]  # without the head over the vocabulary
    layers: int
    hidden: int
    query: int  # heads x their width
    key: int  # the same of keys, which are fewer where heads share them
    heads: int
    inner: int  # width of the gated MLP; of a mixture, of the experts a token goes through
    vocabulary: int

    def trained(self, method: Method) -> int:
        """Weights with a gradient: all, or those of LoRA's adapters, rank · (in + out) a linear layer."""
        if not isinstance(method, Lora):
            return self.weights
        wanted = [
            inputs + outputs
            for name, inputs, outputs in self.linear
            if method.targets is None or any(name == one or name.endswith(f".{one}") for one in method.targets)
        ]
        return method.rank * sum(wanted)


@dataclass(frozen=True)
class Estimate:
    """Bytes of one process on its device at the greatest moment of a step; on a CPU that is the machine's memory.

    `buffers` is what the greatest moment has beyond the other four: buckets of communication and gathered weights
    beside the activations, or the copies of an optimiser step, when these are gone. In the host's memory: `offloaded`
    of one process, `loading` of one process while it starts, `export` of rank 0 alone at the end, the model in fp32.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    buffers: int
    offloaded: int
    loading: int
    export: int

    @property
    def sure(self) -> int:
        """Bytes that no smaller batch avoids: weights, gradients, optimiser states."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """Bytes of the whole at the greatest moment."""
        return self.sure + self.activations + self.buffers

    def host(self, local: int) -> int:
        """Bytes of a machine's own memory under `local` processes with a GPU each."""
        return max(self.loading * local, self.offloaded * local + self.export)


def shape_of(config: Path, trust_remote_code: bool = False) -> Shape:
    """The shape of the model in a Hugging Face folder, or of a config.json: built on torch's meta device, without data.

    Raises `UserError` where there is none, or it is not of a causal language model.
    """
    choose_accelerator()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    file = config if config.suffix == ".json" else config / "config.json"
    if not file.exists():
        raise UserError(f"{file}: not found; run `dvc repro models`")
    try:
        read = AutoConfig.from_pretrained(file, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(read, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{file}: no shape of a language model: {' '.join(str(error).split())}") from None
    text = read.get_text_config()
    head = model.get_output_embeddings()
    linear = [
        (name, part.in_features, part.out_features)
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and part is not head
    ]
    sizes = [parameter.numel() for parameter in model.parameters()]  # a tied matrix is one
    hidden, heads = text.hidden_size, text.num_attention_heads
    width = getattr(text, "head_dim", None) or hidden // heads
    inner = getattr(text, "moe_intermediate_size", None) or getattr(text, "intermediate_size", None) or 4 * hidden
    return Shape(
        weights=sum(sizes),
        largest=max(sizes),
        linear=tuple(linear),
        layers=text.num_hidden_layers,
        hidden=hidden,
        query=heads * width,
        key=(getattr(text, "num_key_value_heads", None) or heads) * width,
        heads=heads,
        inner=inner * (getattr(text, "num_experts_per_tok", None) or 1),
        vocabulary=text.vocab_size,
    )


def stage_of(settings: Train) -> int:
    """DeepSpeed's ZeRO stage: bf16 at 0 runs as 1."""
    return max(1, settings.zero) if settings.precision == "bf16" else settings.zero


def bytes_of(settings: Train) -> int:
    """Bytes of a weight, and of an activation, in the model itself."""
    return 2 if settings.precision == "bf16" else 4


def is_possible(settings: Train) -> bool:
    """Whether params.yaml takes it: optimiser states are offloaded from stage 1 on, weights in stage 3."""
    return settings.zero >= OFFLOAD_FROM[settings.offload]


def takes_flash(settings: Train, on_gpu: bool) -> bool:
    """Whether `train.attention` means FlashAttention here: on a GPU under bf16, if the package flash-attn is there."""
    there = on_gpu and find_spec("flash_attn") is not None
    return there and settings.attention != "sdpa" and settings.precision == "bf16"


def has_mask(settings: Train, on_gpu: bool) -> bool:
    """Whether attention gets a dense mask: SDPA does where a row may hold more than one segment, FlashAttention never.

    One example a row, alone in its micro-batch, has no padding and needs none.
    """
    flash = settings.attention == "flash_attention_2" or takes_flash(settings, on_gpu)
    return not flash and (settings.packing or settings.micro_batch > 1)


def layer_bytes(shape: Shape, settings: Train, masked: bool) -> int:
    """Bytes that one layer keeps for its backward pass, of all tokens of a micro-batch.

    Korthikanti et al. 2022 (Reducing activation recomputation in large transformer models), section 4.1, counted again
    for this kind of layer: no dropout, SDPA keeps no matrix of scores, keys and values may have fewer heads, a gated
    MLP. With e bytes a number, a token keeps
      norms       2 · (4h + 2eh), of which in fp32 the first is the layer's input itself: input in fp32, normed, scaled
      attention   e · (query + key + value + output) + 4 · heads: keys and values are repeated up to all heads where
                  there is a mask
      MLP         4 · e · inner: gate, its activation, up, their product
    and a row of s tokens its mask in numbers, e · s².
    """
    e, tokens = bytes_of(settings), settings.micro_batch * settings.sequence_length
    norms = 2 * (4 * shape.hidden + 2 * e * shape.hidden + 4)
    attention = e * 2 * (shape.query + (shape.query if masked else shape.key)) + 4 * shape.heads
    mask = e * settings.sequence_length if masked else 0
    return tokens * (norms + attention + 4 * e * shape.inner + mask)


def loss_bytes(shape: Shape, settings: Train, method: Method) -> int:
    """Bytes of the loss of a micro-batch at its greatest moment, the first of the backward pass.

    For every token and word of the vocabulary 12: log-probabilities and two gradients in fp32. Under `kl` 40. Every
    position counts as trained on.
    """
    words = settings.micro_batch * settings.sequence_length * shape.vocabulary
    return words * (LOSS_KL if isinstance(method, KL) else LOSS)


def activation_bytes(shape: Shape, settings: Train, method: Method, masked: bool) -> int:
    """Bytes of activations at the greatest moment of a forward and backward pass.

    Without checkpointing that is the loss's: all layers, the last norm, and `loss_bytes`. With checkpointing a layer
    keeps its input, and the greatest moment is the loss's or that of one layer computed again.
    """
    e, tokens = bytes_of(settings), settings.micro_batch * settings.sequence_length
    layer = layer_bytes(shape, settings, masked)
    last = tokens * (4 + 2 * e) * shape.hidden
    loss = loss_bytes(shape, settings, method)
    if not settings.activation_checkpointing:
        return shape.layers * layer + last + loss
    inputs = shape.layers * tokens * e * shape.hidden
    return inputs + last + max(loss, layer + tokens * 4 * (shape.hidden + shape.inner))


@dataclass(frozen=True)
class States:
    """Bytes of weights, gradients and optimiser states of one process, on its device and offloaded."""

    weights: int
    gradients: int
    optimizer: int
    host: int


def deepspeed_says(weights: int, settings: Train, world: int) -> tuple[int, int]:
    """DeepSpeed's own estimate for ZeRO 2 and 3, without its share for buffers: bytes of a device, and of all hosts.

    It takes 16-bit weights for granted. In the source of 0.19.8: stage 2 has 2 bytes a weight, and 18 divided among
    ranks (4 of master weights, 8 of Adam, 4 and 2 of gradients); stage 3 has 18 divided, and the weights and gradients
    of its largest layer, which are left out here (0): what is gathered is counted among the buffers.
    """
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    offloaded = settings.offload != "none"
    if settings.zero == 2:
        host, device = estimate_zero2_model_states_mem_needs(
            weights, world, cpu_offload=offloaded, additional_buffer_factor=1
        )
    else:
        host, device, _ = estimate_zero3_model_states_mem_needs(
            weights,
            0,
            world,
            cpu_offload=offloaded,
            cpu_offload_params=settings.offload == "all",
            additional_buffer_factor=1,
        )
    if not offloaded:
        host = 0  # it counts a model of 4 bytes a weight that is made on the host: ours is read in its own dtype
    elif settings.zero == 2:
        host = min(host, 16 * weights)  # above 4 ranks it counts the same
    return device, host


# Bytes a weight that DeepSpeed's estimate is away from what 0.19.8 was seen to hold: on the device each rank's and
# those divided among ranks, and on the hosts. fp32 weights take 2 more. Stage 2 sums gradients in fp32 and keeps none
# in 16 bits. Beside what is offloaded lies a copy in the weights' dtype for the way back, and in stage 2 under fp32 one
# more of the gradients; bf16's sums stay on the device there; stage 3 has the gradients twice on the host.
CORRECTIONS: dict[tuple[int, str, str], tuple[tuple[int, int], int]] = {
    (2, "none", "bf16"): ((0, -2), 0),
    (2, "none", "fp32"): ((2, -2), 0),
    (2, "optimizer", "bf16"): ((0, 4), 2),
    (2, "optimizer", "fp32"): ((2, 0), 8),
    (3, "none", "bf16"): ((0, 0), 0),
    (3, "none", "fp32"): ((0, 2), 0),
    (3, "optimizer", "bf16"): ((0, 0), 4),
    (3, "optimizer", "fp32"): ((0, 2), 4),
    (3, "all", "bf16"): ((0, 0), 4),
    (3, "all", "fp32"): ((0, 0), 6),
}


def states_of(shape: Shape, settings: Train, method: Method, world: int) -> States:
    """Weights, gradients and optimiser states of one rank: stages 2 and 3 from DeepSpeed's estimate, corrected.

    Stage 0 is torch's: no second copy of the weights. Stage 1 divides the optimiser states only, and in bf16 every rank
    has all gradients twice, in bf16 and summed in fp32. `offload: all` is `optimizer` below stage 3, as DeepSpeed
    offloads weights there only.
    """
    e, stage = bytes_of(settings), stage_of(settings)
    trained, share = shape.trained(method), -(-shape.trained(method) // world)
    frozen = (shape.weights if isinstance(method, Lora | KL) else 0) * e
    frozen = -(-frozen // world) if stage == 3 else frozen
    pulled = SUM * share if isinstance(method, L2SP) else 0
    offload = settings.offload if stage == 3 or settings.offload == "none" else "optimizer"
    moments = 0 if offload != "none" else (MASTER + ADAM) * share
    if stage == 0:
        return States(trained * e + frozen, trained * SUM, trained * ADAM + pulled, 0)
    if stage == 1:
        if settings.precision == "fp32":
            gradients = trained * SUM
        else:
            gradients = trained * SUM + (share * SUM if moments == 0 else trained * e)
        host = 0 if moments else (MASTER + ADAM + SUM + e) * share + pulled
        return States(trained * e + frozen, gradients, moments + (pulled if moments else 0), host)
    asked = settings.model_copy(update={"zero": stage, "offload": offload})
    device, hosts = deepspeed_says(trained, asked, world)
    (each, divided), more = CORRECTIONS[stage, offload, settings.precision]
    device += each * trained + divided * trained // world
    hosts += more * trained
    weights = {2: trained * e, 3: 0 if offload == "all" else share * e}[stage]
    host = -(-hosts // world) + (pulled if offload != "none" else 0)
    if offload == "all":
        host, frozen = host + frozen, 0
    return States(
        weights=weights + frozen,
        gradients=max(0, device - weights - moments),
        optimizer=moments + (pulled if offload == "none" else 0),
        host=host,
    )


def passing_bytes(shape: Shape, settings: Train, world: int, deepspeed: dict[str, Any]) -> int:
    """Bytes beside the activations: DeepSpeed's buckets, and under ZeRO-3 the weights that are gathered at a time."""
    e, stage, zero = bytes_of(settings), stage_of(settings), deepspeed.get("zero_optimization", {})
    bucket = int(zero.get("reduce_bucket_size", 500_000_000))
    if stage == 3:
        live = int(zero.get("stage3_max_live_parameters", 1_000_000_000))
        gathered = min(shape.weights, live) if world > 1 or settings.offload == "all" else 0
        return e * (bucket + gathered)
    if stage == 2:
        return e * bucket * (2 if zero.get("overlap_comm") else 1)
    return e * bucket if stage == 1 and settings.precision == "fp32" else 0


def step_bytes(shape: Shape, settings: Train, method: Method, world: int, deepspeed: dict[str, Any]) -> int:
    """Bytes of copies at the end of the backward pass and in the optimiser's step, when activations are gone.

    Stage 0 lays gradients side by side to reduce them; stage 1 in bf16 as well, and has them in bf16 once more; the
    others copy a rank's share of the gradients (bf16 in stage 2 doesn't), stage 3 a billion at a time. L2-SP has the
    distances to the start.
    """
    stage, trained = stage_of(settings), shape.trained(method)
    share = -(-trained // world)
    if stage == 3:
        share = min(share, int(deepspeed.get("zero_optimization", {}).get("sub_group_size", 1_000_000_000)))
    if stage == 0:
        return SUM * min(trained, REDUCED + shape.largest)
    copies = 0 if settings.offload != "none" else SUM * share
    pulled = copies if isinstance(method, L2SP) else 0
    if stage == 1 and settings.precision == "bf16":
        return max(pulled, trained * (2 + (SUM if trained <= REDUCED else 0)))
    if stage == 2 and settings.precision == "bf16":
        return pulled
    return copies + pulled


def estimate(
    shape: Shape, settings: Train, method: Method, world: int, deepspeed: dict[str, Any], on_gpu: bool
) -> Estimate:
    """What one of `world` processes takes. On a CPU what is offloaded stays in the same memory and is counted there.

    There the C library keeps most of what activations leave, tensors below 32 MiB, and only the loss's large ones are
    given back before the step: its copies come on top. A GPU's allocator gives all of it to the step.
    """
    states = states_of(shape, settings, method, world)
    activations = activation_bytes(shape, settings, method, has_mask(settings, on_gpu))
    step = step_bytes(shape, settings, method, world, deepspeed)
    passing = passing_bytes(shape, settings, world, deepspeed)
    given_back = activations if on_gpu else loss_bytes(shape, settings, method)
    return Estimate(
        weights=states.weights,
        gradients=states.gradients,
        optimizer=states.optimizer + (0 if on_gpu else states.host),
        activations=activations,
        buffers=max(passing, step - given_back),
        offloaded=states.host if on_gpu else 0,
        loading=shape.weights * bytes_of(settings) if on_gpu and stage_of(settings) < 3 else 0,
        export=shape.weights * MASTER if on_gpu else 0,
    )
