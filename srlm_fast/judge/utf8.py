"""UTF-8 as an automaton that turns bytes into classes of characters."""

from __future__ import annotations

import numpy as np

from srlm_fast.judge.alphabet import REPLACEMENT, SURROGATES

BAD = -1  # in a row: no character begins or goes on with this byte
NODE = 1 << 20  # from here on: a node; below: a class


class Decoder:
    """A trie over the bytes of UTF-8 whose equal branches are one node.

    Bytes that are none decode to U+FFFD, as Python's errors="replace" has it: one for the longest
    start of a character, one for each byte that starts none.

    nodes: for each node what each of the 256 bytes gives. bytes: one byte of each column of bytes
    that no node tells apart; column_of [256]. replacement: the class of U+FFFD.
    """

    IDLE = 0

    def __init__(self, class_of: np.ndarray) -> None:
        """class_of [0x110000]: the class of each character."""
        self.replacement = int(class_of[REPLACEMENT])
        self.nodes: list[np.ndarray] = [np.full(256, BAD)]
        self._index: dict[bytes, int] = {}
        two = self._blocks(class_of)  # what the last byte of 64 characters decides
        two[SURROGATES.start >> 6 : SURROGATES.stop >> 6] = BAD
        three = self._blocks(np.concatenate([np.full(32, BAD), two[32:]]))  # not overlong
        four = self._blocks(self._padded(np.concatenate([np.full(16, BAD), three[16:]])))
        first = self.nodes[self.IDLE]
        first[:0x80] = class_of[:0x80]
        first[0xC2:0xE0] = two[2:32]
        first[0xE0:0xF0] = three[:16]
        first[0xF0:0xF5] = four
        rows = np.stack(self.nodes, axis=1)
        _, first_of, columns = np.unique(rows, axis=0, return_index=True, return_inverse=True)
        self.bytes, self.column_of = first_of.tolist(), columns.reshape(-1)

    def _padded(self, blocks: np.ndarray) -> np.ndarray:
        """Up to a whole number of first bytes: beyond U+10FFFF there is nothing."""
        return np.concatenate([blocks, np.full(-len(blocks) % 64, BAD)])

    def _blocks(self, row: np.ndarray) -> np.ndarray:
        """For each 64 entries of a row the node that tells them apart by a byte from 0x80 on."""
        blocks = np.ascontiguousarray(row.reshape(-1, 64), dtype=np.int64)
        return np.array([self._shared(block) for block in blocks])

    def _shared(self, block: np.ndarray) -> int:
        key = block.tobytes()
        if key not in self._index:
            self._index[key] = len(self.nodes)
            node = np.full(256, BAD)
            node[0x80:0xC0] = block
            self.nodes.append(node)
        return NODE + self._index[key]

    def steps(self, node: int) -> list[tuple[list[int], int]]:
        """For each column of bytes the classes decoded, none or one or two, and the next node."""
        return [self._step(node, byte) for byte in self.bytes]

    def _step(self, node: int, byte: int) -> tuple[list[int], int]:
        found = int(self.nodes[node][byte])
        if found >= NODE:
            return [], found - NODE
        if found != BAD:
            return [found], self.IDLE
        if node == self.IDLE:
            return [self.replacement], self.IDLE
        again, behind = self._step(self.IDLE, byte)
        return [self.replacement, *again], behind
