"""Reads the records of a `run-*.wandb` file: LevelDB's log format, 32 KiB blocks of checked chunks of protobuf."""

import json
import struct
from pathlib import Path

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32768, struct.Struct("<IHB")  # of a chunk: checksum, length, kind
WHOLE, LAST = 1, 4


def read_records(path: Path) -> list:
    data, place, waiting, records = path.read_bytes(), 7, b"", []  # a file begins with 7 bytes of its own
    assert data.startswith(b":W&B")
    while place + HEADER.size <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER.size:  # too short for a chunk: padding
            place += left
            continue
        _, length, kind = HEADER.unpack_from(data, place)
        place += HEADER.size
        waiting += data[place : place + length]
        place += length
        if kind in (WHOLE, LAST):
            records.append(wandb_internal_pb2.Record.FromString(waiting))
            waiting = b""
    return records


def values(items) -> dict:
    """Config or history items as a mapping; nested keys with dots."""
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


class WandbFile:
    """What one session of a W&B run has left on the disk."""

    def __init__(self, path: Path):
        records = read_records(path)
        self.folder = path.parent
        self.run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
        self.history = [values(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
        self.artifacts = [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
        self.artifacts += [
            r.request.log_artifact.artifact for r in records if r.request.WhichOneof("request_type") == "log_artifact"
        ]
        self.exit_code = next(r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit")
        summaries = [values(r.summary.update) for r in records if r.WhichOneof("record_type") == "summary"]
        self.summary = {key: value for summary in summaries for key, value in summary.items()}
        self.config = values(self.run.config.update)
        for record in records:
            if record.WhichOneof("record_type") == "config":
                self.config |= values(record.config.update)


def read_sessions(folder: Path) -> list[WandbFile]:
    """The sessions in a WANDB_DIR, oldest first."""
    return [
        WandbFile(path) for path in sorted(folder.glob("wandb/*run-*/run-*.wandb"), key=lambda p: p.stat().st_ctime)
    ]
