#!/usr/bin/env python3
"""Verifies a journal from its description alone, and with nothing but the standard library.

    verify_journal.py JOURNAL [--anchor SEQ:HASH]...

JOURNAL is the file that is written (`journal.jsonl`); the closed ones beside it (`journal.000000001234.jsonl`) are found. Prints
"records head" when the chain holds, or the line and the number of the record that does not. An anchor is a head that was kept elsewhere:
a record of that number has to be there, with that hash.
"""
import argparse
import hashlib
import json
import pathlib
import re
import sys

SEAL = b',"hash":"'
GENESIS = "0" * 64


class Broken(Exception):
    """The first thing that does not hold."""


def files(journal):
    """The closed files in the order of their last records, then the one that is written."""
    closed = []
    pattern = re.compile(re.escape(journal.stem) + r"\.(\d{12})\.jsonl")
    for path in journal.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match:
            closed.append((int(match.group(1)), path))
    return [path for _, path in sorted(closed)] + [journal]


def lines(journal):
    """Each whole line of all files. What stands behind the last newline was never acknowledged."""
    data = b"".join(path.read_bytes() for path in files(journal))
    return data.split(b"\n")[:-1]


def parse(line):
    """The record of a line, or what is wrong with it."""
    body, seal, rest = line.rpartition(SEAL)
    if not seal or len(rest) != 66 or rest[64:] != b'"}':
        raise Broken("not a record")
    if hashlib.sha256(body).hexdigest() != rest[:64].decode("ascii", "replace"):
        raise Broken("hash")
    try:
        record = json.loads(line)
    except ValueError as error:
        raise Broken("not a record") from error
    if list(record) != ["seq", "time", "prev", "event", "hash"]:
        raise Broken("not a record")
    return record


def is_dropped(event, seq, head):
    """Whether the journal says of itself that it dropped everything up to that record."""
    return isinstance(event, dict) and event == {"type": "dropped", "through": seq, "hash": head}


def verify(all_lines, anchors):
    """The number and the hash of the last record."""
    seq, head, missing = 0, GENESIS, None
    found = {}
    for number, line in enumerate(all_lines, 1):
        try:
            record = parse(line)
            if number == 1 and record["seq"] != 1:
                seq, head = record["seq"] - 1, record["prev"]
                missing = (seq, head)
            if record["seq"] != seq + 1 or record["prev"] != head:
                raise Broken("link")
        except Broken as broken:
            raise Broken(f"line {number}: {broken}") from broken
        if missing and is_dropped(record["event"], *missing):
            missing = None
        seq, head = record["seq"], record["hash"]
        found[seq] = head
    if missing:
        raise Broken("line 1: link")
    first = min(found, default=1)
    for anchored, expected in anchors:
        if anchored >= first and found.get(anchored) != expected:
            raise Broken(f"record {anchored}: not the one that was anchored")
    return seq, head


def anchor(text):
    seq, _, expected = text.partition(":")
    return int(seq), expected


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("journal", type=pathlib.Path)
    options.add_argument("--anchor", type=anchor, action="append", default=[])
    chosen = options.parse_args()
    try:
        print(*verify(lines(chosen.journal), chosen.anchor))
    except Broken as reason:
        sys.exit(str(reason))
