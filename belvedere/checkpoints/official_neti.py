"""NeTI's published files, ``mapper-steps-N.pt`` and ``learned_embeds-steps-N.bin``, as concepts; nothing unpickles."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from belvedere.checkpoints.tensors import one_line, read_state_dict, read_training_file
from belvedere.errors import InputError
from belvedere.generation.concept import Base, Concept
from belvedere.generation.neti import NeTIMapper
from belvedere.generation.neti_text import TextEncoder

LAYERS = 16
"""Of the U-Nets that the official code personalizes."""
OBJECTS = ("models.positional_encoding.NeTIPositionalEncoding", "models.positional_encoding.BasicEncoder")
"""Classes whose instances official files hold: the encodings."""
NAMES = (
    ("input_layer.", "project_in."),
    ("net.1.", "mlp.0."),
    ("net.2.", "mlp.1."),
    ("net.4.", "mlp.3."),
    ("net.5.", "mlp.4."),
    ("output_layer.0.", "head."),
    ("encoder.w", "encode.w"),
)
"""Beginnings of official names, and ours."""
_ALIASES = ("net.0.", "encoder.normalized_")
"""What is stored a second time, or can be evaluated."""


def neti_names(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official state dict of a mapper under our names."""
    ours = {}
    for name, tensor in official.items():
        if name.startswith(_ALIASES):
            continue
        for theirs, mine in NAMES:
            if name.startswith(theirs):
                name = mine + name.removeprefix(theirs)
                break
        ours[name] = tensor
    return ours


def neti_config(official: Mapping[str, Tensor], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return our config; ``fields``: part "model" of the official configuration, for what the shapes do not tell."""
    fourier, bypass = fields.get("use_positional_encoding", True), fields.get("output_bypass", True)
    outputs, hidden = _shape(official, "output_layer.0.weight")
    norm, sigmas = fields.get("target_norm"), fields.get("pe_sigmas", {})
    if not isinstance(sigmas, Mapping):
        raise InputError(f"pe_sigmas {sigmas!r}: must have sigma_t and sigma_l")
    config: dict[str, Any] = {
        "widths": [outputs // 2 if bypass else outputs],
        "layers": LAYERS,
        "hidden": hidden,
        "encoding": "fourier" if fourier else "basic",
        "bypass": bypass,
        "target_norms": None if norm is None else [norm],
        "nested_dropout": fields.get("use_nested_dropout", True),
        "dropout_probability": fields.get("nested_dropout_prob", 0.5),
    }
    if fourier:
        rows, width = _shape(official, "input_layer.weight")
        anchors = fields.get("num_pe_time_anchors", 10)
        if not isinstance(anchors, int) or anchors < 1 or rows % anchors:
            raise InputError(f"num_pe_time_anchors {anchors!r} does not divide the {rows} rows of input_layer")
        config |= {"layers": rows // anchors, "anchors": anchors, "frequencies": width // 2}
        config |= {"sigma_time": sigmas.get("sigma_t", 0.03), "sigma_layer": sigmas.get("sigma_l", 2.0)}
    return config


def _shape(official: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    if name not in official or official[name].ndim != 2:
        raise InputError(f"no matrix {name}: these are not the weights of an official NeTI mapper")
    rows, columns = official[name].shape
    return rows, columns


def official_mapper(official: Mapping[str, Tensor], fields: Mapping[str, Any]) -> NeTIMapper:
    """Return our mapper with the numbers of an official state dict.

    ``official`` has the frequencies of the encoding under ``encoder.w``; ``fields``: see ``neti_config``. Raises
    ``InputError`` when names or shapes do not fit.
    """
    config, ours = neti_config(official, fields), neti_names(official)
    with torch.device("meta"):
        mapper = NeTIMapper(**config)
    wanted = {name: tensor.shape for name, tensor in mapper.state_dict().items()}
    found = {name: tensor.shape for name, tensor in ours.items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise InputError(f"official mapper: missing, unknown or of another shape: {', '.join(wrong[:5])}")
    mapper.load_state_dict({name: tensor.float().clone() for name, tensor in ours.items()}, assign=True)
    return mapper.requires_grad_(True).eval()


class OfficialFile(NamedTuple):
    """What an official mapper's file holds."""

    weights: dict[str, Tensor]
    """The state dict, with the frequencies under ``encoder.w``."""
    model: dict[str, Any]
    """Of the configuration, the part "model"."""
    data: dict[str, Any]
    """And the part "data"."""

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> "OfficialFile":
        """Sort what ``read_training_file`` read; raises ``InputError`` when it is no official mapper."""
        start = "state_dict."
        weights = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        for key in ("encoder.w", "encoder._parameters.w"):  # an attribute in files from a GPU, else a parameter
            if key in tensors:
                weights["encoder.w"] = tensors[key]
        config = plain.get("cfg")
        model, data = (config.get(part) if isinstance(config, dict) else None for part in ("model", "data"))
        if not isinstance(model, dict) or not isinstance(data, dict):
            raise InputError("the file has no 'cfg' with 'model' and 'data': it is no mapper of the official code")
        return cls(weights, model, data)

    def text(self, part: str, field: str) -> str:
        """Return a text of the configuration, one line of it; raises ``InputError`` where there is none."""
        value = getattr(self, part).get(field)
        if not isinstance(value, str):
            raise InputError(
                f"the file's configuration has no text {part}.{field}: it is no mapper of the official code"
            )
        return one_line(value)


def official_concept(
    mapper: Path | str, embeddings: Path | str | None = None, encoders: Sequence[TextEncoder] = ()
) -> Concept:
    """Return the concept in an official file ``mapper``; nothing in it runs.

    ``embeddings``: the ``learned_embeds`` file beside it; ``encoders``: see ``concept_from``. Raises ``InputError`` for
    what is damaged, holds more than tensors, plain values and encodings, or does not fit together.
    """
    file = OfficialFile.of(*read_training_file(mapper, OBJECTS))
    return concept_from(file, read_state_dict(embeddings) if embeddings is not None else None, encoders)


def concept_from(
    file: OfficialFile, embeddings: Mapping[str, Tensor] | None = None, encoders: Sequence[TextEncoder] = ()
) -> Concept:
    """Return the concept an official file describes.

    ``embeddings``: the super-category's embedding under the concept's token. ``encoders``: the one of the base model,
    if at hand: its digest is kept, and its vocabulary must have that embedding. Raises ``InputError`` for what does not
    fit together.
    """
    base = Base(file.text("model", "pretrained_model_name_or_path"), tuple(encoder.digest for encoder in encoders))
    mapper = official_mapper(file.weights, file.model)
    concept = Concept(file.text("data", "placeholder_token"), file.text("data", "super_category_token"), mapper, base)
    if encoders:
        concept.check_base(encoders)
    if embeddings is not None:
        _check_embedding(concept, embeddings, encoders)
    return concept


def _check_embedding(concept: Concept, embeddings: Mapping[str, Tensor], encoders: Sequence[TextEncoder]) -> None:
    """Compare the super-category's embedding with what the mapper was scaled to, and with the base's vocabulary."""
    row = embeddings.get(concept.token)
    if row is None:
        raise InputError(f"no learned embedding of {concept.token}, but of {one_line(', '.join(embeddings))[:80]}")
    norm, norms = row.float().norm().item(), concept.mapper.config.target_norms
    if row.shape != (concept.mapper.config.widths[0],) or (norms and abs(norm / norms[0] - 1) > 1e-2):
        raise InputError(f"the learned embedding of {concept.token} does not fit the mapper: it is of another training")
    if encoders and (encoders[0].table.detach().float().cpu() - row.float()).norm(dim=1).min() > 1e-2 * norm:
        raise InputError(
            f"the learned embedding of {concept.token} is not in this model's vocabulary: "
            f"load it with its base, {concept.base.name}"
        )
