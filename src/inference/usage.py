"""Usage of an exported program: its input, its classes, and five lines of Python that run it."""

import json
from pathlib import Path

from inference.checkpoint import LoadedCheckpoint


class Usage:
    """The documentation of an exported program, for its own fields and for the terminal."""

    def __init__(self, checkpoint: LoadedCheckpoint, normalizes: bool) -> None:
        self.data, self.labels, self.normalizes = checkpoint.config.data, checkpoint.labels, normalizes
        self.channels = checkpoint.weights.architecture.channels
        self.height, self.width = checkpoint.image_size or (224, 224)

    @property
    def input_text(self) -> str:
        colors = {1: "grey", 3: "RGB"}.get(self.channels, f"{self.channels} channels")
        values = "0 to 1 (pixels / 255); the program normalizes them"
        if not self.normalizes:
            values = f"(pixels / 255 - mean) / std, with mean {self.data.mean} and std {self.data.std}"
        return (
            f"images: float32 [batch, {self.channels}, {self.height}, {self.width}], batch × channels × height × "
            f"width, {colors}, values {values}."
        )

    @property
    def output_text(self) -> str:
        return f"logits: float32 [batch, {len(self.labels)}], one for each of the labels in the metadata."

    @property
    def metadata(self) -> dict[str, str]:
        data = self.data
        values = {"labels": self.labels, "mean": data.mean, "std": data.std, "crop_fraction": data.crop_fraction}
        return {
            "input": self.input_text,
            **{key: json.dumps(value) for key, value in values.items()},
            "normalizes": json.dumps(self.normalizes),
        }

    def text(self, path: Path) -> str:
        return "\n".join((self.input_text, self.output_text, "", self.snippet(path)))

    def snippet(self, path: Path) -> str:
        """Write five lines of Python that print the class of IMAGE.png."""
        pixels = f"np.asarray(image, np.float32).reshape({self.height}, {self.width}, {self.channels}) / 255"
        if not self.normalizes and self.data.mean:
            pixels = f"np.float32(({pixels} - {self.data.mean}) / {self.data.std})"
        pixels = f"({pixels}).transpose(2, 0, 1)[None]"
        bleed = round((1 - self.data.crop_fraction) / 2, 4)
        if path.suffix == ".onnx":
            library = "onnxruntime"
            load = f"program = onnxruntime.InferenceSession({path.name!r})"
            labels = 'program.get_modelmeta().custom_metadata_map["labels"]'
            logits = 'program.run(None, {"images": pixels})[0]'
        else:
            library = "torch"
            load = f"program = torch.export.load({path.name!r}, extra_files=(files := {{'labels': ''}})).module()"
            labels, logits = 'files["labels"]', "program(torch.from_numpy(pixels))"
        lines = (
            f"import json, numpy as np, {library}; from PIL import Image, ImageOps",
            load,
            f'image = ImageOps.fit(Image.open("IMAGE.png").convert({"L" if self.channels == 1 else "RGB"!r}), '
            f"({self.width}, {self.height}), Image.Resampling.BICUBIC, {bleed})",
            f"pixels = {pixels}",
            f"print(json.loads({labels})[int({logits}.argmax())])",
        )
        return "\n".join(lines)
