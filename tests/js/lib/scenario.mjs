// The protocol between a test in Rust and a client script: the script is told its parameters as one JSON argument,
// reports facts as JSON lines on standard output and is told to go on by JSON lines on standard input. Whatever a
// library prints goes to standard error, which the test shows only when it fails.

import { createInterface } from "node:readline";

for (const method of ["log", "info", "debug", "trace"]) console[method] = (...args) => console.error(...args);

// matrix-js-sdk 43 is written for Node 22; this is all it misses in Node 20.
Promise.withResolvers ??= () => {
    const parts = {};
    parts.promise = new Promise((resolve, reject) => Object.assign(parts, { resolve, reject }));
    return parts;
};

/** The parameters the test passed. */
export const parameters = JSON.parse(process.argv[2] ?? "{}");

/** Reports one fact. */
export function report(event, fields = {}) {
    process.stdout.write(JSON.stringify({ event, ...fields }) + "\n");
}

const told = [];
const listeners = [];
createInterface({ input: process.stdin }).on("line", (line) => {
    if (!line.trim()) return;
    const listener = listeners.shift();
    if (listener) listener(JSON.parse(line));
    else told.push(JSON.parse(line));
});

/** The next command of the test; anything but `expected` is an error. */
export async function command(expected) {
    const next = told.length > 0 ? told.shift() : await new Promise((resolve) => listeners.push(resolve));
    if (next.command !== expected) throw new Error(`told "${next.command}" while waiting for "${expected}"`);
    return next;
}

/** Looks every `interval` ms until `condition` gives something truthy, and fails with `what` after `limit` ms. */
export async function until(what, condition, limit = 60_000, interval = 100) {
    const end = performance.now() + limit;
    let last;
    for (;;) {
        try {
            const value = await condition();
            if (value) return value;
        } catch (error) {
            last = error;
        }
        if (performance.now() > end) {
            throw new Error(`not within ${limit} ms: ${what}${last ? ` (last: ${last.stack ?? last})` : ""}`);
        }
        await new Promise((resolve) => setTimeout(resolve, interval));
    }
}

/** Runs the script's body and ends the process with its verdict. */
export async function run(body) {
    try {
        await body();
        report("done");
        process.exit(0);
    } catch (error) {
        report("failed", { reason: String(error?.stack ?? error) });
        process.exit(1);
    }
}
process.on("unhandledRejection", (error) => console.error("unhandled rejection:", error));
