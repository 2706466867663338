"""The Hugging Face Hub: models and runs of it are read from its cache, or downloaded into it, and folders are uploaded.

Only the files that hbench reads are downloaded. They may come from anyone, and are checked as any others.
"""

import shlex
from pathlib import Path

from hbench.errors import HBenchError

STEM = "diffusion_pytorch_model"
"""Name of the weights of a network of diffusers, without suffix and variant."""
OF_RUN = (
    *("model.safetensors", "shift_block.safetensors", "reconstructor.safetensors", "discriminator.safetensors"),
    *("mean.safetensors", "global.safetensors", "names.txt", "metrics.csv"),
)
"""Files of a shared run, its JSON apart."""
FILES = [*(f"{folder}{each}" for folder in ("", "unet/", "scheduler/") for each in ("*.json", f"{STEM}*")), *OF_RUN]
"""Files that are downloaded, as patterns."""


def snapshot(name: str) -> Path:
    """Return the folder of a model or run of the Hugging Face Hub: from its cache, or else downloaded into it.

    Raises:
        HBenchError: it is not in the cache, and the Hub has no such model for everybody, or cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        try:
            folder = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
            if (folder / OF_RUN[0]).is_file() or next(folder.glob(f"**/{STEM}*"), None):
                return folder
        except OSError:
            pass  # it is not in the cache
        return Path(snapshot_download(name, allow_patterns=FILES))
    except (OSError, HFValidationError) as error:
        reached = isinstance(error, HfHubHTTPError | HFValidationError)
        why = "has no such model for everybody" if reached else "cannot be reached, nor is it in its cache"
        raise HBenchError(
            f"{name}: no such file or folder, and the Hugging Face Hub {why}: give the folder of a run or model"
        ) from error


def hub_entry(path: Path) -> Path | None:
    """Return the entry of the Hugging Face Hub's cache of which a folder is a snapshot; None for other folders."""
    folder = Path(path).resolve()
    is_snapshot = folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--")
    return folder.parents[1] if is_snapshot else None


def check_push(name: str, *, overwrite: bool = False) -> None:
    """Check that a folder could be uploaded as ``name`` now: network, token, id, and that nothing is there.

    Raises:
        HBenchError: one of them is missing or wrong.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError  # type: ignore[attr-defined]

    if get_token() is None:
        raise HBenchError(f'`push={name}`: there is no token of the Hub: give one by HF_TOKEN, or by "hf auth login"')
    hub = HfApi()
    try:
        is_there = hub.repo_exists(name)
        hub.whoami()  # asks once, while an upload would ask again and again
    except HFValidationError as error:
        raise HBenchError(f"`push={name}`: is no id of the Hugging Face Hub: name it as OWNER/NAME") from error
    except HfHubHTTPError as error:
        raise HBenchError(f'`push={name}`: the Hub refuses the token: give another one with "hf auth login"') from error
    except (OSError, HTTPError) as error:
        raise HBenchError(f"`push={name}`: the Hugging Face Hub cannot be reached: leave `push` out") from error
    if is_there and not overwrite:
        raise HBenchError(f"`push={name}`: is there already: choose another `push`, or add `overwrite=True`")


def push(folder: Path, name: str, *, public: bool = False, overwrite: bool = False) -> str:
    """Upload a folder as a model of the Hugging Face Hub, and return its address.

    Args:
        folder: folder to upload, with all that lies in it.
        name: id OWNER/NAME.
        public: let everybody see it; a new one is else private, and one that is there stays as it is.
        overwrite: upload into a model that is there.

    Raises:
        HBenchError: the model is there, or the Hub refuses; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    hub = HfApi()
    try:
        hub.create_repo(name, private=not public, exist_ok=overwrite)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="A run of hbench")
    except (OSError, HTTPError) as error:
        said = (str(error).strip().splitlines() or ["no more is known"])[0]
        by_hand = f'"hf upload {name} {shlex.quote(str(folder))}" uploads the folder, which stays'
        raise HBenchError(f"`push={name}`: the upload failed ({said}): {by_hand}") from error
    return f"https://huggingface.co/{name}"
