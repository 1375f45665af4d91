"""CLIP's tokenizers as transformers saves them: read from a folder of their own, to which what is known is copied.

Their settings may name files to be read instead, and other files beside them are read before those of CLIP.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from belvedere.checkpoints.components import check_numbers, read_json
from belvedere.errors import InputError

_MAX_BYTES = 16 << 20
_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "added_tokens.json")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
FILES = _FILES + _SETTINGS
"""All that are read of a folder."""
_FIELDS = (
    "add_prefix_space", "added_tokens_decoder", "additional_special_tokens", "bos_token",
    "clean_up_tokenization_spaces", "do_lower_case", "eos_token", "errors", "extra_special_tokens", "model_max_length",
    "pad_token", "padding_side", "split_special_tokens", "truncation_side", "unk_token",
)  # fmt: skip
"""Of the settings, those that are kept."""


def load_tokenizer(cls: Any, folder: Path) -> Any:
    """Return the tokenizer, of transformers' class ``cls``, in a folder; ``InputError`` as for ``copy_tokenizer``."""
    with tempfile.TemporaryDirectory(prefix="belvedere-", ignore_cleanup_errors=True) as fresh:
        copy_tokenizer(folder, Path(fresh))
        tokenizer = cls.from_pretrained(fresh, local_files_only=True)
    tokenizer.name_or_path = str(folder)
    return tokenizer


def copy_tokenizer(folder: Path, fresh: Path) -> None:
    """Write the files of a tokenizer to the folder ``fresh``, its settings without those that are not known.

    Raises ``InputError`` for a file that is damaged, too large or no plain one, for numbers that no tokenizer has, and
    where there is no vocabulary.
    """
    for source in (folder / name for name in _FILES if (folder / name).exists()):
        if source.suffix == ".json":
            check_numbers(read_json(source, _MAX_BYTES), source)
        elif not source.is_file() or source.stat().st_size > _MAX_BYTES:
            raise InputError(f"{source}: no plain file of at most {_MAX_BYTES >> 20} MB; get the model again")
        shutil.copyfile(source, fresh / source.name)
    there = {path.name for path in fresh.iterdir()}
    if "tokenizer.json" not in there and not {"vocab.json", "merges.txt"} <= there:
        raise InputError(f"{folder}: neither tokenizer.json nor vocab.json and merges.txt; get the model again")
    for source in (folder / name for name in _SETTINGS if (folder / name).exists()):
        settings = read_json(source)
        kept = {key: settings[key] for key in _FIELDS if key in settings}
        check_numbers(kept, source)
        (fresh / source.name).write_text(json.dumps(kept))
