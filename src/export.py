"""Export a checkpoint of a run, or a published one: ONNX, torch.export, safetensors, published layouts.

python src/export.py checkpoint=outputs/SWEEP/RUN format=onnx
python src/export.py checkpoint=convmixer_768_32 format=safetensors
python src/export.py --help
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from config.commands import run_command


def run(composed: DictConfig, overrides: Sequence[str]) -> None:
    # Imported late: torch takes seconds, which --help and a misspelt key need not wait for.
    from inference.checkpoint import open_checkpoint
    from inference.export import export

    checkpoint = open_checkpoint(composed, overrides)
    export(checkpoint, checkpoint.settings)


if __name__ == "__main__":
    run_command("export", run)
