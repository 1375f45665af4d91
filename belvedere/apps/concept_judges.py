"""What tells how alike pictures are, and pictures and text: CLIP from a folder, or the embedded classifier of toys."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from belvedere.checkpoints.components import read_json
from belvedere.checkpoints.tensors import one_line
from belvedere.data.images import centre_crop, to_tensor
from belvedere.errors import InputError
from belvedere.seeds import derive

CHUNK = 32
"""Pictures looked at in one go."""
RENDERS = 96
"""Toys whose mean is what no picture is alike to."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels that OpenAI's CLIP models were trained on, where a folder does not say."""
MOST_SIDE = 1024
FIGURES = ("image_similarity", "held_out_similarity", "text_similarity", "recognised")
"""What ``figures_of`` tells."""


class Judge(Protocol):
    """Directions (n, d) of length 1 whose products are similarities."""

    name: str

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return the directions of pictures."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor | None:
        """Return those of sentences; None if it cannot read."""
        ...

    def recognised(self, pictures: Sequence[Image.Image], word: str) -> float | None:
        """Return the share of pictures that it takes for the thing ``word``; None if it does not know such."""
        ...


class ToyJudge:
    """The embedded classifier of toys: features less those of the mean toy. It knows kinds, and cannot read."""

    name = "toybox-classifier"

    def __init__(self) -> None:
        from belvedere.apps.evaluate import load_classifier
        from belvedere.data.toybox import Toybox

        self.classifier = load_classifier()
        self.kinds: tuple[str, ...] = tuple(self.classifier.config["classes"])
        toys = Toybox(self.classifier.config["size"], seed=derive("evaluation", "mean toy"), kinds=self.kinds)
        self.mean = self._features(toys.batch(range(RENDERS))["image"].split(CHUNK)).mean(0)

    @torch.no_grad()
    def _features(self, batches: Iterable[Tensor]) -> Tensor:
        return torch.cat([self.classifier.features(batch) for batch in batches])

    def _of(self, pictures: Sequence[Image.Image]) -> Tensor:
        return self._features(to_tensor(p.convert("RGB"))[None].float() / 127.5 - 1 for p in pictures)

    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """See ``Judge``."""
        return F.normalize(self._of(pictures) - self.mean, dim=1)

    def texts(self, texts: Sequence[str]) -> Tensor | None:
        """It cannot read."""
        return None

    def recognised(self, pictures: Sequence[Image.Image], word: str) -> float | None:
        """See ``Judge``."""
        if word not in self.kinds:
            return None
        with torch.no_grad():
            found = self.classifier.classify(self._of(pictures)).argmax(1)
        return (found == self.kinds.index(word)).double().mean().item()


class ClipJudge:
    """A CLIP model in a folder, as transformers saves it: ``config.json``, safetensors, tokenizer."""

    def __init__(self, folder: Path):
        from transformers import CLIPModel, CLIPTokenizer

        if not (folder / "config.json").is_file():
            raise InputError(f"no CLIP model in {folder}: give a folder with config.json and its weights")
        try:
            self.model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
            self.tokenizer: Any = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # readers of configs raise anything
            raise InputError(f"{folder}: not a CLIP model ({one_line(error)}); get it again") from error
        self.name = f"CLIP {folder.name}"
        self.side = int(self.model.config.vision_config.image_size)
        if not 1 <= self.side <= MOST_SIDE:
            raise InputError(f"{folder}: a CLIP model of pictures of {self.side} pixels; at most {MOST_SIDE} are read")
        settings = folder / "preprocessor_config.json"
        told = read_json(settings) if settings.is_file() else {}
        self.mean = torch.tensor(told.get("image_mean") or MEAN).view(3, 1, 1)
        self.std = torch.tensor(told.get("image_std") or STD).view(3, 1, 1)

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """See ``Judge``; of an oblong picture the square in the middle."""
        cut = (to_tensor(centre_crop(picture.convert("RGB"), self.side)).float() / 255 for picture in pictures)
        pixels = torch.stack([(image - self.mean) / self.std for image in cut])  # (n, 3, side, side)
        made = [_vectors(self.model.get_image_features(pixel_values=part)) for part in pixels.split(CHUNK)]
        return F.normalize(torch.cat(made), dim=1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor | None:
        """See ``Judge``; a sentence that is too long loses its end."""
        read = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        made = self.model.get_text_features(input_ids=read["input_ids"], attention_mask=read["attention_mask"])
        return F.normalize(_vectors(made), dim=1)

    def recognised(self, pictures: Sequence[Image.Image], word: str) -> float | None:
        """It does not say."""
        return None


def open_judge(name: str) -> Judge:
    """Return the judge of a name: that of the embedded classifier, or else a folder with a CLIP model."""
    return ToyJudge() if name == ToyJudge.name else ClipJudge(Path(name))


def figures_of(
    judge: Judge, made: Sequence[Image.Image], truth: Tensor, apart: Tensor | None, read: Tensor | None, word: str
) -> dict[str, float | None]:
    """Return ``FIGURES`` of pictures ``made``, None where nothing can be said.

    ``truth`` and ``apart``: directions of the photographs learned from and of those held out; ``read``: of prompts,
    picture i having prompt i modulo their number; ``word``: what is to be recognised.
    """
    seen = judge.pictures(made)  # (n, d)
    own = None if read is None else read[[i % len(read) for i in range(len(seen))]]
    return {
        "image_similarity": (seen @ truth.T).mean().item(),
        "held_out_similarity": None if apart is None else (seen @ apart.T).mean().item(),
        "text_similarity": None if own is None else (seen * own).sum(1).mean().item(),
        "recognised": judge.recognised(made, word),
    }


def _vectors(made: Any) -> Tensor:
    """Return the projected features, which newer transformers wrap."""
    found: Tensor = made if isinstance(made, Tensor) else made.pooler_output
    return found.float()
