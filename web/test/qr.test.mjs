// The QR encoder against an independent decoder, at every size it supports.
import assert from "node:assert/strict";
import { test } from "node:test";
import { build } from "esbuild";
import jsQR from "jsqr";

const bundle = await build({ entryPoints: ["src/qr.ts"], bundle: true, format: "esm", write: false });
const { encode } = await import(`data:text/javascript,${encodeURIComponent(bundle.outputFiles[0].text)}`);

function read(matrix) {
  const [scale, quiet] = [4, 4];
  const size = (matrix.length + 2 * quiet) * scale;
  const pixels = new Uint8ClampedArray(size * size * 4).fill(255);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const dark = matrix[Math.floor(y / scale) - quiet]?.[Math.floor(x / scale) - quiet];
      if (dark) pixels.fill(0, (y * size + x) * 4, (y * size + x) * 4 + 3);
    }
  }
  return jsQR(pixels, size, size)?.data;
}

test("every version reads back", () => {
  for (let length = 1; length <= 213; length += 4) {
    const text = "https://matrix.example.org/".padEnd(length, "0123456789abcdef").slice(0, length);
    assert.equal(read(encode(text)), text);
  }
});

test("text outside ASCII reads back", () => {
  assert.equal(read(encode("https://例え.jp")), "https://例え.jp");
});

test("what does not fit is refused", () => {
  assert.notEqual(encode("x".repeat(213)), undefined);
  assert.equal(encode("x".repeat(214)), undefined);
});
