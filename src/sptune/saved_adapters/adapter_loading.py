"""Loading the weights of an adapter folder into its backbone, whatever the folder says of their sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from peft import PeftModel
from transformers import PreTrainedModel

from sptune.errors import InputError
from sptune.modeling.size_checks import check_adapter_size
from sptune.runs.processes import processes
from sptune.saved_adapters.adapter_files import WEIGHTS_FILE, WRONG_VALUES
from sptune.saved_adapters.adapter_folder import AdapterFolder


def load_with_backbone(folder: AdapterFolder, backbone: PreTrainedModel, key: str = "default") -> PeftModel:
    """A backbone with its first adapter, in evaluation mode on the device of this process.

    With low_cpu_mem_usage weights take as much memory as in the file, whatever sizes the configuration names.

    Args:
        folder: of the adapter.
        backbone: the frozen model.
        key: the adapter's name in the model.

    Raises:
        InputError: the weights do not fit.
    """
    with loading(folder, backbone):
        model = PeftModel.from_pretrained(backbone, str(folder.path), adapter_name=key, low_cpu_mem_usage=True)
        missing = [name for name, weight in model.named_parameters() if weight.is_meta]
        if missing:
            raise ValueError(f"missing: {missing[:3]}")
        return model.eval().to(processes().device)


@contextlib.contextmanager
def loading(folder: AdapterFolder, model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """A context manager for loading weights, which says whose they are if they do not fit.

    Args:
        folder: of the adapter.
        model: the backbone, with or without other adapters.

    Raises:
        InputError: the weights do not fit; before they are read if they are more than the backbone's.
    """
    try:
        check_adapter_size(sum(folder.sizes.values()), model, f"in {WEIGHTS_FILE}")
        yield
    except (*WRONG_VALUES, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"{folder.path}: its weights do not fit its configuration, its task or the backbone ({error}); save the "
            "adapter again with the versions that trained it."
        ) from error
