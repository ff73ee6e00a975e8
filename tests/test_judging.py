"""A vote is what the judge's own last line says, or missing; which question asks for it, and which is asked again."""

import math
import re

import pytest
from asking import MODES, answer

from anamnesis.client import Outcome
from anamnesis.errors import QUALITY, UserError
from anamnesis.judging import (
    PARSE_FLOOR,
    Mode,
    Question,
    Vote,
    check_parse_rate,
    expected_score,
    judge_messages,
    justify_call,
    load_prompt,
    local_expected_call,
    parse_score,
    reask_call,
    score_call,
    vote_of,
)
from anamnesis.sections import Judge

EXPECTED = [
    ("Clear and right.\nScore: 4", 4),
    ("Score: 1", 1),
    ("Good.\n\nScore: 5\n\n  \n", 5),
    ("Score:3", 3),
    ("The answer says 'Score: 5'.\nScore: 2", 2),  # the response's own claim, quoted
    ("Score: 5\nBut it is wrong, so I would say less.", None),  # the score is not the last line
    ("Score: 2\nScore: 4", 4),  # two scores: the last line counts
    ("Score: 2 Score: 4", None),
    ("Score: 0", None),
    ("Score: 6", None),
    ("Score: 45", None),
    ("Score: 4.5", None),
    ("Score: 4/5", None),
    ("Score: four", None),
    ("Score:", None),
    ("**Score: 4**", None),
    ("score: 4", None),
    ("My score: 4", None),
    ("Score: 4 out of 5", None),
    ("Puntuación: 4", None),
    ("评分：4", None),
    ("Note : 3", None),
    ("Score: ٤", None),  # ARABIC-INDIC DIGIT FOUR
    ("Score: ４", None),  # FULLWIDTH DIGIT FOUR
    ("It says \u2028Score: 5", None),  # a separator that is no line feed can stand within a quotation
    ("It says \x0cScore: 5", None),
    ("It says \x85Score: 5", None),
    ("It says \rScore: 5", None),
    ("Fine.\r\nScore: 4\r\n", 4),
    ("Score: 4 <|im_end|>", None),
    ("", None),
    ("\n \n", None),
]


@pytest.mark.parametrize(("reply", "score"), EXPECTED)
def test_only_a_last_line_in_the_form_asked_for_counts(reply: str, score: int | None) -> None:
    assert parse_score(reply) == score


PLAIN = "Why?\nBecause the air scatters blue light."


@pytest.mark.parametrize(("mode", "local"), MODES)
def test_a_missing_vote_is_none_with_a_reason_never_zero(mode: Mode, local: bool) -> None:
    for outcome in (answer("no line"), answer(None), answer("", "length"), answer("no line", _x=0.9)):
        vote = vote_of(mode, local, outcome, PLAIN)
        assert (vote.score, vote.parse, vote.answered) == (None, "missing", True)
        assert vote.reason
        assert vote.again != (mode == "expected" and local)  # one token again would be the same token
        assert not vote_of(mode, local, outcome, PLAIN, reasked=True).again
    failed = vote_of(mode, local, Outcome(None, "HTTP 400: no"), PLAIN)
    assert (failed.score, failed.reason, failed.answered, failed.again) == (None, "HTTP 400: no", False, False)


@pytest.mark.parametrize(
    ("mode", "local", "outcome", "vote"),
    [
        ("expected", True, answer("4", "length", _4=0.5, _2=0.5), Vote(3.0, "logprobs")),
        ("expected", False, answer("Score: 4", _4=0.75, _2=0.25), Vote(3.5, "logprobs")),
        ("score", True, answer("Score: 4"), Vote(4.0, "constrained")),
        ("score", False, answer("Score: 4"), Vote(4.0, "strict")),
        ("justify", True, answer("Clear.\nScore: 4"), Vote(4.0, "constrained", "Clear.")),
        ("justify", False, answer("Clear.\nScore: 4"), Vote(4.0, "strict", "Clear.")),
    ],
)
def test_every_mode_gives_a_vote_and_its_rung(mode: Mode, local: bool, outcome: Outcome, vote: Vote) -> None:
    assert vote_of(mode, local, outcome, PLAIN) == vote
    if mode != "expected" or not local:
        assert vote_of(mode, local, outcome, PLAIN, reasked=True).parse == "reask"


def test_a_line_that_was_cut_may_have_gone_on() -> None:
    vote = vote_of("justify", False, answer("Clear.\nScore: 4", "length"), PLAIN)
    assert (vote.score, vote.reason, vote.again) == (None, "cut at max_tokens", True)


def test_a_remote_expectation_is_that_of_the_last_line() -> None:
    """The endpoint gives probabilities for each token: those of a digit that came earlier are no vote."""

    def vote(outcome: Outcome) -> Vote:
        return vote_of("expected", False, outcome, PLAIN)

    assert vote(answer("5\nScore: 2", _5=0.9, _2=0.1)).reason == "probabilities of another rating"
    assert vote(answer("Score: 2")).reason == "no probabilities of the rating"
    assert vote(answer("Score: 2 or 5", _5=0.9)).again


@pytest.mark.parametrize(
    ("logprobs", "score"),
    [
        ({"5": 0.0}, 5.0),
        ({"1": math.log(0.5), "5": math.log(0.5)}, 3.0),
        ({" 4": math.log(0.2), "4": math.log(0.2), "2": math.log(0.1), "the": math.log(0.5)}, 3.6),
        ({"6": 0.0, "0": -1.0}, None),
        ({"3": math.log(0.01), "no": math.log(0.99)}, None),
        ({}, None),
        (None, None),
    ],
)
def test_expected_score_is_the_renormalised_mean(logprobs: dict[str, float] | None, score: float | None) -> None:
    assert expected_score(logprobs) == (pytest.approx(score) if score is not None else None)


def test_prompts_of_one_instruction_share_all_but_the_response() -> None:
    prompt = load_prompt("prompts/judge.txt")
    one, other = (judge_messages(prompt, "Why?", answer, 17)[0]["content"] for answer in ("A", "B"))
    assert one[: one.index("\nA\n")] == other[: other.index("\nB\n")]


def test_the_second_question_asks_for_the_score_line_alone() -> None:
    messages = [{"role": "user", "content": "grade"}]
    call = justify_call(messages, Judge(mode="justify"), 17, constrained=True)
    short = score_call(messages, Judge(mode="score"), 17, constrained=True)
    regex = call.request["extra_body"]["structured_outputs"]["regex"]
    for said in ("It helps.\nScore: 4", "It helps twice. Good!\nScore: 1", "很好。\nScore: 5"):
        assert re.fullmatch(regex, said)
    for said in ("Score: 4", "It helps\nScore: 4", "It helps.\nScore: 6", "One. Two. Three.\nScore: 4"):
        assert not re.fullmatch(regex, said)
    assert short.request["extra_body"]["structured_outputs"]["regex"] == "Score: [1-5]"
    assert "extra_body" not in score_call(messages, Judge(mode="score"), 17, constrained=False).request
    for first in (call, short):
        again = reask_call(Question(first.kind, first.request), answer("It is fine"))
        assert again.request["extra_body"] == short.request["extra_body"]
        assert [m["role"] for m in again.request["messages"]] == ["user", "assistant", "user"]
        assert first.key("m") != again.key("m")
    free = Question("chat", justify_call(messages, Judge(), 17, constrained=False).request)
    assert "extra_body" not in reask_call(free, answer("")).request


def test_too_few_readable_replies_end_the_stage_with_advice() -> None:
    good, bad = Vote(3.0, "strict"), Vote(None, "missing", reason="no readable last line")
    lost = Vote(None, "missing", reason="HTTP 500 after 9 tries", answered=False)
    check_parse_rate("j", "justify", [bad] * (PARSE_FLOOR - 1) + [lost] * 40, 0.8)  # a handful is no rate
    check_parse_rate("j", "justify", [good] * 16 + [bad] * 4 + [lost] * 40, 0.8)
    check_parse_rate("j", "justify", [], 0.8)
    for mode, advice in (("justify", "raise judges.j.max_tokens"), ("expected", "to score"), ("score", "to expected")):
        with pytest.raises(UserError) as error:
            check_parse_rate("j", mode, [good] * 15 + [bad] * 5, 0.8)
        assert error.value.code == QUALITY
        for said in ("judge j", "75% of 20 replies", "judging.min_parse_rate (80%)", "no readable last line", advice):
            assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_a_prompt_without_its_places_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    for text in ("$instruction $response", "$instruction $response $mark $", "no places"):
        (tmp_path / "judge.txt").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"\$instruction, \$response and \$mark"):
            load_prompt(tmp_path / "judge.txt")


def test_the_score_token_follows_the_prompt_on_the_real_tokenizer(smollm2_tokenizer) -> None:  # type: ignore[no-untyped-def]
    messages = [{"role": "user", "content": "grade this"}]
    prompt = local_expected_call(smollm2_tokenizer, messages).request["prompt"]
    assert smollm2_tokenizer.decode(prompt).endswith("<|im_start|>assistant\nScore: ")
    for digit in "12345":
        whole = smollm2_tokenizer(smollm2_tokenizer.decode(prompt) + digit, add_special_tokens=False)["input_ids"]
        assert whole[:-1] == prompt
