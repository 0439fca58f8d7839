"""Who answers DPG-Bench's questions: any visual question answering or vision language model of transformers.

The official judge, mPLUG, needs transformers below 5 and runs in an environment of its own; its answers are imported
(docs/guides/dpg.md). Every other judge shifts scores by several points, so a judge's name is part of every result.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from PIL import Image
from torch import Tensor

from twinflow.errors import TwinflowError
from twinflow.evaluation.dpg.processors import load_processor

PLUG_IN = "python:"
PROMPT = "{question} Answer with yes or no."
YES, NO = ("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no")
Mode = Literal["greedy", "compare"]


class Judge(Protocol):
    """What looks at a picture and answers questions."""

    @property
    def name(self) -> str: ...

    def answer(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """An answer to each question: "yes", "no", or whatever the judge says."""
        ...


class VqaJudge:
    """A model made for visual question answering, such as ``Salesforce/blip-vqa-capfilt-large``.

    It generates a short answer to the bare question; beams and length as in the official judge. Questions of one
    length go together: BLIP's decoder looks at padding, too, so that an answer would depend on its neighbours.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str,
        batch_size: int = 16,
        beams: int = 5,
        max_new_tokens: int = 10,
        device: torch.device | str = "cpu",
    ) -> None:
        self.name = name
        self.device = torch.device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.processor = processor
        self.batch_size, self.beams, self.max_new_tokens = batch_size, beams, max_new_tokens

    @classmethod
    def load(cls, path_or_id: str | Path, *, device: torch.device | str = "cpu", **options: Any) -> VqaJudge:
        """From a transformers folder or hub id of BLIP's kind (safetensors only)."""
        from transformers import BlipForQuestionAnswering, BlipProcessor

        with _told(path_or_id):
            model = BlipForQuestionAnswering.from_pretrained(str(path_or_id), use_safetensors=True)
            processor = BlipProcessor.from_pretrained(str(path_or_id))
        return cls(model, processor, name=_name(path_or_id), device=device, **options)

    @torch.inference_mode()
    def answer(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        answers = [""] * len(questions)
        for places in self._batches(questions):
            some = [questions[place] for place in places]
            inputs = self.processor(images=[image] * len(some), text=some, return_tensors="pt").to(
                self.device
            )
            tokens = self.model.generate(
                **inputs, num_beams=self.beams, max_new_tokens=self.max_new_tokens, do_sample=False
            )
            for place, text in zip(places, self.processor.batch_decode(tokens, skip_special_tokens=True)):
                answers[place] = text.strip()
        return answers

    def _batches(self, questions: Sequence[str]) -> Iterator[list[int]]:
        """Places of questions with equally many tokens, at most ``batch_size`` at a time."""
        by_length: dict[int, list[int]] = {}
        for place, question in enumerate(questions):
            by_length.setdefault(len(self.processor.tokenizer(question)["input_ids"]), []).append(place)
        for places in by_length.values():
            for start in range(0, len(places), self.batch_size):
                yield places[start : start + self.batch_size]


class VlmJudge:
    """A vision language model with a chat template, such as ``Qwen/Qwen2.5-VL-7B-Instruct``.

    It is asked "… Answer with yes or no.". ``mode="greedy"`` takes the first word that it says; ``"compare"`` says yes
    where the next token's probability of any "yes" is at least that of any "no", so that every answer is clear.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str,
        mode: Mode = "greedy",
        max_new_tokens: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if mode not in get_args(Mode):
            raise TwinflowError(
                f"the mode of a judge must be one of {', '.join(get_args(Mode))}, got {mode!r}"
            )
        self.name = f"{name} ({mode})"
        self.mode, self.max_new_tokens = mode, max_new_tokens
        self.device = torch.device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.processor = processor
        if mode == "compare":
            self.yes, self.no = self._tokens(YES), self._tokens(NO)
            if not self.yes or not self.no:
                raise TwinflowError(
                    f"the tokenizer of {name} has no token for yes or for no: use mode='greedy'"
                )

    @classmethod
    def load(
        cls,
        path_or_id: str | Path,
        *,
        mode: Mode = "greedy",
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> VlmJudge:
        """From a transformers folder or hub id (safetensors only), in the dtype of the weights, or fp32 on a CPU."""
        from transformers import AutoModelForImageTextToText

        kind = dtype or (torch.float32 if torch.device(device).type == "cpu" else "auto")
        with _told(path_or_id):
            model = AutoModelForImageTextToText.from_pretrained(
                str(path_or_id), use_safetensors=True, dtype=kind
            )
            processor = load_processor(path_or_id)
        return cls(model, processor, name=_name(path_or_id), mode=mode, device=device)

    @torch.inference_mode()
    def answer(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        return [self._one(image, question) for question in questions]

    def _one(self, image: Image.Image, question: str) -> str:
        content = [
            {"type": "image", "image": image},
            {"type": "text", "text": PROMPT.format(question=question)},
        ]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = self.processor(images=[image], text=[text], return_tensors="pt").to(self.device)
        if self.mode == "compare":
            logits: Tensor = self.model(**inputs).logits[0, -1].float()
            return "yes" if logits[self.yes].logsumexp(0) >= logits[self.no].logsumexp(0) else "no"
        tokens = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        said = tokens[0, inputs["input_ids"].shape[1] :]
        return self.processor.decode(said, skip_special_tokens=True).strip()

    def _tokens(self, words: Sequence[str]) -> list[int]:
        """Of those words that are one token."""
        tokenizer = self.processor.tokenizer
        tokens = (tokenizer(word, add_special_tokens=False)["input_ids"] for word in words)
        return sorted({one[0] for one in tokens if len(one) == 1})


def load_judge(path_or_id: str | Path, *, mode: Mode = "greedy", device: torch.device | str = "cpu") -> Judge:
    """The judge that a folder or hub id holds: BLIP's kind answers by itself, ``mode`` is for all others. Or one's own,
    ``python:module:function``."""
    from transformers import AutoConfig

    if str(path_or_id).startswith(PLUG_IN):
        return _own(str(path_or_id))
    with _told(path_or_id):
        kind = AutoConfig.from_pretrained(str(path_or_id)).model_type
    if kind == "blip":
        return VqaJudge.load(path_or_id, device=device)
    return VlmJudge.load(path_or_id, mode=mode, device=device)


def plug_in(text: str) -> Callable[[], Any]:
    """The function that ``python:module:function`` names; ``TwinflowError`` if there is none."""
    module, _, name = text.removeprefix(PLUG_IN).partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
        if not callable(function):
            raise TypeError(f"{name} is no function")
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise TwinflowError(f"the judge {text} can't be imported: {error}") from error
    return function


def _own(text: str) -> Judge:
    judge = plug_in(text)()
    if not (isinstance(getattr(judge, "name", None), str) and callable(getattr(judge, "answer", None))):
        raise TwinflowError(
            f"{text} returned {judge!r}: a judge has a name, a text, and answer(image, questions)"
        )
    return judge


@contextmanager
def _told(path_or_id: str | Path) -> Iterator[None]:
    """Turns what loading raises into an error that says what to do."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise TwinflowError(
            f"no judge can be loaded from {path_or_id}: {error}. Give a transformers folder or hub id with safetensors."
        ) from error


def _name(path_or_id: str | Path) -> str:
    path = Path(path_or_id)
    return path.name if path.exists() else str(path_or_id)
