"""Messages with a schema: Avro, Protobuf and JSON Schema, from files or from a registry."""

from __future__ import annotations
