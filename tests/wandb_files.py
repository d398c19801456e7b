"""Reader of the files that the W&B client writes offline: protobuf records in LevelDB's log format."""

import json
import struct
from pathlib import Path
from typing import Any

import wandb
from wandb.proto import wandb_internal_pb2

BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def records(file: Path) -> list[Any]:
    content = file.read_bytes()
    assert content[:4] == b":W&B"
    position, parts, complete = 7, b"", []
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:  # no record starts at the very end of a block
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        if not kind:
            break
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(parts)
            complete.append(record)
            parts = b""
    return complete


def read(run_folder: Path) -> dict[str, Any]:
    """Read the W&B run in a run's folder: name, group, config, history and summary of the latest file."""
    wandb.teardown()  # the client's service writes on for a moment
    file = max(run_folder.glob("wandb/offline-run-*/*.wandb"))
    run: dict[str, Any] = {"config": {}, "history": [], "summary": {}}
    for record in records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"id": record.run.run_id, "name": record.run.display_name, "group": record.run.run_group}
            run |= {"project": record.run.project, "tags": list(record.run.tags), "notes": record.run.notes}
            run["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            run["history"].append(row)
        elif kind == "summary":
            for item in record.summary.update:
                run["summary"][item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return run
