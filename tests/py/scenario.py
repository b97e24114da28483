"""The protocol between a test in Rust and a client script: parameters as one JSON argument, facts as JSON lines on
standard output, commands as JSON lines on standard input."""

import asyncio
import json
import sys
import traceback

PARAMETERS = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}


def report(event, **fields):
    """Reports one fact."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


async def command(expected):
    """The next command of the test; anything but `expected` is an error."""
    line = await asyncio.to_thread(sys.stdin.readline)
    if not line:
        raise RuntimeError(f'the test hung up while "{expected}" was awaited')
    told = json.loads(line)
    if told["command"] != expected:
        raise RuntimeError(f'told "{told["command"]}" while waiting for "{expected}"')
    return told


async def until(what, condition, limit=60.0):
    """Looks until `condition` gives something true, and fails with `what` after `limit` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limit
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        if loop.time() > end:
            raise RuntimeError(f"not within {limit} s: {what}")
        await asyncio.sleep(0.05)


def run(body):
    """Runs the script's body and ends the process with its verdict."""

    async def judged():
        try:
            await body()
        except BaseException:
            report("failed", reason=traceback.format_exc())
            return 1
        report("done")
        return 0

    sys.exit(asyncio.run(judged()))
