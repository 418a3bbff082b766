"""What runs inside the simulator: cocotb plays the GEMMs that arrive on a socket to `testbench.sv`.

This module is imported by cocotb only, by its own name and without the packages around it: they take long to import.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import cocotb
from messages import receive, send  # type: ignore[import-not-found]


@cocotb.test()
async def serve(dut: Any) -> None:
    """Answer requests until the other side closes the socket.

    A request is `{"set": {vector: bits}, "chunks": [chunk, ...]}`, a chunk
    `{"stimulus": bits, "runs": [[cycles, {vector: bits}], ...]}`: set the vectors, then in each chunk run some cycles
    after the other, each run with more vectors set. The answer is the logs of all chunks. Bits are strings of 0 and 1,
    the most significant one first; those of a log may be X or Z.
    """
    with socket.socket(fileno=int(os.environ["EFAT_COSIMULATION_SOCKET"])) as connection:
        send(connection, "ready")
        while (request := receive(connection)) is not None:
            for name, bits in request["set"].items():
                getattr(dut, name).value = bits
            logs = []
            for chunk in request["chunks"]:
                dut.stimulus.value = chunk["stimulus"]
                stop = 0
                for cycles, vectors in chunk["runs"]:
                    for name, bits in vectors.items():
                        getattr(dut, name).value = bits
                    dut.first.value = stop
                    stop += cycles
                    dut.stop.value = stop
                    dut.go.value = not int(dut.go.value)
                    await dut.done.value_change
                logs.append(str(dut.log.value))
            send(connection, logs)
