"""Export a checkpoint, ours or a published one: ONNX, torch.export, safetensors, the published layouts.

python src/export.py checkpoint=outputs/SWEEP/RUN format=onnx
python src/export.py checkpoint=convmixer_768_32 format=safetensors
python src/export.py --help
"""

from collections.abc import Sequence

from omegaconf import DictConfig

from config.commands import run_command


def run(composed: DictConfig, overrides: Sequence[str]) -> None:
    # torch takes seconds to import: not for --help or a misspelt key
    from inference.checkpoint import complete, load_checkpoint
    from inference.export import export
    from weights.files import read_weights

    weights = read_weights(composed.checkpoint)
    settings = complete(composed, weights, overrides)
    checkpoint = load_checkpoint(weights, settings)
    export(checkpoint, settings)


if __name__ == "__main__":
    run_command("export", run)
