// QR codes (ISO/IEC 18004): byte mode, error correction level M, versions 1 to 10. Owns the encoding; knows no page.

/** Dark modules, row by row. */
export type Matrix = boolean[][];

interface Version {
  /** Error correction codewords in each block. */
  ecc: number;
  /** Blocks as [count, data codewords]. */
  blocks: [number, number][];
  alignment: number[];
}

// ISO/IEC 18004 tables 7, 9 and E.1, level M.
const VERSIONS: Version[] = [
  { ecc: 10, blocks: [[1, 16]], alignment: [] },
  { ecc: 16, blocks: [[1, 28]], alignment: [6, 18] },
  { ecc: 26, blocks: [[1, 44]], alignment: [6, 22] },
  { ecc: 18, blocks: [[2, 32]], alignment: [6, 26] },
  { ecc: 24, blocks: [[2, 43]], alignment: [6, 30] },
  { ecc: 16, blocks: [[4, 27]], alignment: [6, 34] },
  { ecc: 18, blocks: [[4, 31]], alignment: [6, 22, 38] },
  { ecc: 22, blocks: [[2, 38], [2, 39]], alignment: [6, 24, 42] },
  { ecc: 22, blocks: [[3, 36], [2, 37]], alignment: [6, 26, 46] },
  { ecc: 26, blocks: [[4, 43], [1, 44]], alignment: [6, 28, 50] },
];

const MASKS: ((row: number, column: number) => boolean)[] = [
  (r, c) => (r + c) % 2 === 0,
  (r) => r % 2 === 0,
  (_, c) => c % 3 === 0,
  (r, c) => (r + c) % 3 === 0,
  (r, c) => (Math.floor(r / 2) + Math.floor(c / 3)) % 2 === 0,
  (r, c) => ((r * c) % 2) + ((r * c) % 3) === 0,
  (r, c) => (((r * c) % 2) + ((r * c) % 3)) % 2 === 0,
  (r, c) => (((r + c) % 2) + ((r * c) % 3)) % 2 === 0,
];

/** The code for `text`, or undefined when it is too long for version 10. */
export function encode(text: string): Matrix | undefined {
  const bytes = [...new TextEncoder().encode(text)];
  const index = VERSIONS.findIndex((version, at) => bytes.length <= capacity(version) - (at < 9 ? 2 : 3));
  const version = VERSIONS[index];
  if (!version) return undefined;
  const codewords = interleave(version, dataCodewords(bytes, capacity(version), index < 9 ? 8 : 16));
  let best: Matrix | undefined;
  let lowest = Infinity;
  for (let mask = 0; mask < MASKS.length; mask++) {
    const matrix = draw(index + 1, version, codewords, mask);
    const score = penalty(matrix);
    if (score < lowest) [best, lowest] = [matrix, score];
  }
  return best;
}

function capacity(version: Version): number {
  return version.blocks.reduce((sum, [count, size]) => sum + count * size, 0);
}

function dataCodewords(bytes: number[], total: number, lengthBits: number): number[] {
  const bits: number[] = [];
  const push = (value: number, count: number) => {
    for (let at = count - 1; at >= 0; at--) bits.push((value >> at) & 1);
  };
  push(0b0100, 4);
  push(bytes.length, lengthBits);
  for (const byte of bytes) push(byte, 8);
  push(0, Math.min(4, total * 8 - bits.length));
  while (bits.length % 8 !== 0) bits.push(0);
  const words: number[] = [];
  for (let at = 0; at < bits.length; at += 8) words.push(bits.slice(at, at + 8).reduce((sum, bit) => sum * 2 + bit, 0));
  for (let pad = 0; words.length < total; pad++) words.push(pad % 2 === 0 ? 0xec : 0x11);
  return words;
}

function interleave(version: Version, data: number[]): number[] {
  const blocks: number[][] = [];
  let from = 0;
  for (const [count, size] of version.blocks) {
    for (let block = 0; block < count; block++) blocks.push(data.slice(from, (from += size)));
  }
  const corrections = blocks.map((block) => remainder(block, version.ecc));
  return [...columns(blocks), ...columns(corrections)];
}

function columns(rows: number[][]): number[] {
  const longest = Math.max(...rows.map((row) => row.length));
  const out: number[] = [];
  for (let at = 0; at < longest; at++) for (const row of rows) if (at < row.length) out.push(row[at]!);
  return out;
}

// Arithmetic in GF(256) modulo x^8 + x^4 + x^3 + x^2 + 1.
function multiply(a: number, b: number): number {
  let product = 0;
  for (let bit = 7; bit >= 0; bit--) {
    product = (product << 1) ^ ((product >> 7) * 0x11d);
    if ((b >> bit) & 1) product ^= a;
  }
  return product;
}

/** Reed-Solomon error correction codewords of one block. */
function remainder(block: number[], degree: number): number[] {
  const divisor: number[] = Array(degree).fill(0);
  divisor[degree - 1] = 1;
  let root = 1;
  for (let step = 0; step < degree; step++) {
    for (let at = 0; at < degree; at++) divisor[at] = multiply(divisor[at]!, root) ^ (divisor[at + 1] ?? 0);
    root = multiply(root, 2);
  }
  const rest: number[] = Array(degree).fill(0);
  for (const word of block) {
    const factor = word ^ rest.shift()!;
    rest.push(0);
    divisor.forEach((coefficient, at) => (rest[at]! ^= multiply(coefficient, factor)));
  }
  return rest;
}

function draw(number: number, version: Version, codewords: number[], mask: number): Matrix {
  const size = number * 4 + 17;
  const dark: Matrix = Array.from({ length: size }, () => Array(size).fill(false));
  const fixed: Matrix = Array.from({ length: size }, () => Array(size).fill(false));
  const set = (row: number, column: number, value: boolean) => {
    dark[row]![column] = value;
    fixed[row]![column] = true;
  };
  for (let at = 0; at < size; at++) {
    set(6, at, at % 2 === 0);
    set(at, 6, at % 2 === 0);
  }
  for (const [top, left] of [[3, 3], [3, size - 4], [size - 4, 3]] as const) {
    for (let dr = -4; dr <= 4; dr++) {
      for (let dc = -4; dc <= 4; dc++) {
        const [row, column, ring] = [top + dr, left + dc, Math.max(Math.abs(dr), Math.abs(dc))];
        if (row >= 0 && row < size && column >= 0 && column < size) set(row, column, ring !== 2 && ring !== 4);
      }
    }
  }
  const last = version.alignment.length - 1;
  version.alignment.forEach((row, r) => {
    version.alignment.forEach((column, c) => {
      const onFinder = (r === 0 && c === 0) || (r === 0 && c === last) || (r === last && c === 0);
      if (onFinder) return;
      for (let dr = -2; dr <= 2; dr++) {
        for (let dc = -2; dc <= 2; dc++) set(row + dr, column + dc, Math.max(Math.abs(dr), Math.abs(dc)) !== 1);
      }
    });
  });
  drawFormat(size, mask, set);
  if (number >= 7) drawVersion(size, number, set);
  fill(size, codewords, mask, dark, fixed);
  return dark;
}

type Setter = (row: number, column: number, value: boolean) => void;

/** Level M is 00; BCH(15,5), masked. */
function drawFormat(size: number, mask: number, set: Setter): void {
  let rest = mask;
  for (let step = 0; step < 10; step++) rest = (rest << 1) ^ ((rest >> 9) * 0x537);
  const bits = ((mask << 10) | rest) ^ 0x5412;
  const bit = (at: number) => ((bits >> at) & 1) === 1;
  for (let at = 0; at <= 5; at++) set(at, 8, bit(at));
  set(7, 8, bit(6));
  set(8, 8, bit(7));
  set(8, 7, bit(8));
  for (let at = 9; at < 15; at++) set(8, 14 - at, bit(at));
  for (let at = 0; at < 8; at++) set(8, size - 1 - at, bit(at));
  for (let at = 8; at < 15; at++) set(size - 15 + at, 8, bit(at));
  set(size - 8, 8, true);
}

/** BCH(18,6). */
function drawVersion(size: number, number: number, set: Setter): void {
  let rest = number;
  for (let step = 0; step < 12; step++) rest = (rest << 1) ^ ((rest >> 11) * 0x1f25);
  const bits = (number << 12) | rest;
  for (let at = 0; at < 18; at++) {
    const value = ((bits >> at) & 1) === 1;
    const [near, far] = [Math.floor(at / 3), size - 11 + (at % 3)];
    set(near, far, value);
    set(far, near, value);
  }
}

function fill(size: number, codewords: number[], mask: number, dark: Matrix, fixed: Matrix): void {
  const invert = MASKS[mask]!;
  let at = 0;
  for (let right = size - 1; right >= 1; right -= 2) {
    if (right === 6) right = 5;
    for (let step = 0; step < size; step++) {
      const upward = ((right + 1) & 2) === 0;
      const row = upward ? size - 1 - step : step;
      for (const column of [right, right - 1]) {
        if (fixed[row]![column]) continue;
        const bit = (((codewords[at >> 3] ?? 0) >> (7 - (at & 7))) & 1) === 1;
        dark[row]![column] = bit !== invert(row, column);
        at++;
      }
    }
  }
}

/** How badly a masked symbol reads: the four rules of ISO/IEC 18004, 7.8.3. */
function penalty(matrix: Matrix): number {
  const size = matrix.length;
  const turned = matrix.map((_, column) => matrix.map((row) => row[column]!));
  let score = 0;
  for (const line of [...matrix, ...turned]) {
    let run = 1;
    for (let at = 1; at <= size; at++) {
      if (at < size && line[at] === line[at - 1]) run++;
      else {
        if (run >= 5) score += run - 2;
        run = 1;
      }
    }
    const text = line.map((module) => (module ? "1" : "0")).join("");
    for (const finder of ["10111010000", "00001011101"]) {
      for (let at = text.indexOf(finder); at >= 0; at = text.indexOf(finder, at + 1)) score += 40;
    }
  }
  for (let row = 1; row < size; row++) {
    for (let column = 1; column < size; column++) {
      const value = matrix[row]![column];
      const same = [matrix[row - 1]![column], matrix[row]![column - 1], matrix[row - 1]![column - 1]];
      if (same.every((other) => other === value)) score += 3;
    }
  }
  const share = matrix.flat().filter(Boolean).length / (size * size);
  return score + Math.floor(Math.abs(share * 100 - 50) / 5) * 10;
}
