#!/usr/bin/env python3
"""Verifies a journal from its description alone: prints "records head", or the line that does not hold."""
import hashlib
import json
import sys

SEAL = b',"hash":"'


def verify(data):
    head, count = "0" * 64, 0
    for line in data.split(b"\n")[:-1]:
        count += 1
        body, seal, rest = line.rpartition(SEAL)
        if not seal or len(rest) != 66 or rest[64:] != b'"}':
            sys.exit(f"line {count}: not a record")
        if hashlib.sha256(body).hexdigest() != rest[:64].decode("ascii", "replace"):
            sys.exit(f"line {count}: hash")
        record = json.loads(line)
        if record["seq"] != count or record["prev"] != head:
            sys.exit(f"line {count}: link")
        head = record["hash"]
    return count, head


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as journal:
        print(*verify(journal.read()))
