"""What tells how alike pictures are, and pictures and text: the embedded classifier of toys, CLIP or DINO."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from belvedere.checkpoints.components import read_json
from belvedere.checkpoints.published import load_transformers, reading
from belvedere.checkpoints.tokenizer import load_tokenizer
from belvedere.data.images import to_tensor
from belvedere.errors import InputError
from belvedere.seeds import derive

CHUNK = 32
"""Pictures looked at in one go."""
RENDERS = 96
"""Toys whose mean is what no picture is alike to."""
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels that OpenAI's CLIP models and those of DINO were trained on, where a folder does not say."""
DINO = {"vit": "ViTModel", "dinov2": "Dinov2Model"}
"""Types of models that a folder may name, and their classes in transformers."""
MOST_SIDE = 1024
FIGURES = ("image_similarity", "held_out_similarity", "text_similarity", "recognised")
"""What a ``Comparison`` tells of pictures."""


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

        if _type_in(folder, "CLIP") != "clip":
            raise InputError(f"{folder}: not a CLIP model; give the folder of one")
        with reading(folder):
            self.model: Any = load_transformers(CLIPModel, folder)
            self.tokenizer: Any = load_tokenizer(CLIPTokenizer, folder)
            self.lens = Lens(folder, self.model.config.vision_config.image_size, CLIP_MEAN, CLIP_STD)
        self.name = f"CLIP {folder.name}"

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """See ``Judge``; of an oblong picture the square in the middle."""
        pixels = self.lens(pictures)
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


class DinoJudge:
    """A DINO or DINOv2 model in a folder, as transformers saves it: class tokens, which tell a thing from others of its
    kind (Ruiz et al., "DreamBooth", CVPR 2023, section 4.2). It cannot read."""

    def __init__(self, folder: Path):
        import transformers

        kind = _type_in(folder, "DINO")
        if not isinstance(kind, str) or kind not in DINO:
            raise InputError(f"{folder}: a model of type {str(kind)[:40]}: give one of {', '.join(DINO)}")
        options = {"add_pooling_layer": False} if kind == "vit" else {}
        network: Any = getattr(transformers, DINO[kind])
        with reading(folder):
            self.model = load_transformers(network, folder, **options)
            self.lens = Lens(folder, self.model.config.image_size, IMAGENET_MEAN, IMAGENET_STD)
        self.name = f"DINO {folder.name}"

    @torch.no_grad()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """See ``Judge``; of an oblong picture the square in the middle."""
        made = [self.model(pixel_values=part).last_hidden_state[:, 0] for part in self.lens(pictures).split(CHUNK)]
        return F.normalize(torch.cat(made), dim=1)

    def texts(self, texts: Sequence[str]) -> Tensor | None:
        """It cannot read."""
        return None

    def recognised(self, pictures: Sequence[Image.Image], word: str) -> float | None:
        """It does not say."""
        return None


class Lens:
    """How the network in a folder takes pictures: the shorter side is brought to ``edge`` pixels by a bicubic filter,
    and the square of ``side`` in the middle is cut out.

    These, and mean and standard deviation of pixels, are those of ``preprocessor_config.json``, or else as given; an
    edge that is not told is the side.
    """

    def __init__(self, folder: Path, side: int, mean: Sequence[float], std: Sequence[float]):
        settings = folder / "preprocessor_config.json"
        told = read_json(settings) if settings.is_file() else {}
        crop = told.get("crop_size") or side
        self.side = int(crop["height"] if isinstance(crop, dict) else crop)
        edge = told.get("size") or self.side
        edge = int(edge.get("shortest_edge", self.side) if isinstance(edge, dict) else edge)
        self.edge = max(edge, self.side)  # nothing can be cut out of less
        if not 1 <= self.side <= self.edge <= MOST_SIDE:
            sizes = f"{self.side} pixels, of {self.edge} before they are cropped"
            raise InputError(f"{folder}: a model of pictures of {sizes}; at most {MOST_SIDE} are read")
        self.mean = torch.tensor(told.get("image_mean") or mean).view(3, 1, 1)
        self.std = torch.tensor(told.get("image_std") or std).view(3, 1, 1)

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Return the pixels (n, 3, side, side) of pictures of any size."""
        cut = (to_tensor(self._cut(picture.convert("RGB"))).float() / 255 for picture in pictures)
        return torch.stack([(image - self.mean) / self.std for image in cut])

    def _cut(self, picture: Image.Image) -> Image.Image:
        """Return the square; what is beside it is not scaled, however long the picture is."""
        (left, right), (upper, lower) = (self._middle(length, min(picture.size)) for length in picture.size)
        return picture.resize((self.side, self.side), Image.Resampling.BICUBIC, (left, upper, right, lower))

    def _middle(self, length: int, shorter: int) -> tuple[float, float]:
        """Return where the square begins and ends on a side of ``length`` pixels, before it is scaled."""
        scaled = length * self.edge // shorter
        begin = (scaled - self.side) // 2
        return begin * length / scaled, (begin + self.side) * length / scaled


def _type_in(folder: Path, kind: str) -> object:
    """Return the type of the model in a folder; ``InputError`` for one without any."""
    if not (folder / "config.json").is_file():
        raise InputError(f"no {kind} model in {folder}: give a folder with config.json and its weights")
    return read_json(folder / "config.json").get("model_type")


def open_judge(name: str) -> Judge:
    """Return the judge of a name: that of the embedded classifier, or else a folder with a CLIP model."""
    return ToyJudge() if name == ToyJudge.name else ClipJudge(Path(name))


class Comparison:
    """What pictures are compared with, as one judge sees it: photographs learned from, others held out, and prompts."""

    def __init__(
        self, judge: Judge, learned: Sequence[Image.Image], held_out: Sequence[Image.Image], prompts: Sequence[str]
    ):
        self.judge = judge
        self.learned = judge.pictures(learned)
        self.held_out = judge.pictures(held_out) if held_out else None
        self.prompts = judge.texts(prompts)

    def figures(self, made: Sequence[Image.Image], word: str) -> dict[str, float | None]:
        """Return ``FIGURES`` of pictures, None where nothing can be said; ``word``: what is to be recognised.

        Similarities are means over all pairs; picture i has prompt i modulo their number.
        """
        seen, read = self.judge.pictures(made), self.prompts  # (n, d)
        own = None if read is None else read[[i % len(read) for i in range(len(seen))]]
        return {
            "image_similarity": (seen @ self.learned.T).mean().item(),
            "held_out_similarity": None if self.held_out is None else (seen @ self.held_out.T).mean().item(),
            "text_similarity": None if own is None else (seen * own).sum(1).mean().item(),
            "recognised": self.judge.recognised(made, word),
        }

    def among(self) -> dict[str, float | None]:
        """Return the similarity of different photographs, None of one alone, and that of those held out to them."""
        count, alike = len(self.learned), self.learned @ self.learned.T
        found = {"image_similarity": (alike.sum() - count).item() / (count * (count - 1)) if count > 1 else None}
        if self.held_out is not None:
            found["held_out_similarity"] = (self.held_out @ self.learned.T).mean().item()
        return found


def _vectors(made: Any) -> Tensor:
    """Return the projected features, which newer transformers wrap."""
    found: Tensor = made if isinstance(made, Tensor) else made.pooler_output
    return found.float()
