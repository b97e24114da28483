// Builds dist/ from src/. The banner carries a digest of the sources, which a test of the server compares, so that a
// stale dist/ cannot be committed unnoticed. With --check: builds in memory and fails where dist/ differs.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";

const root = import.meta.dirname;
const digest = createHash("sha256");
for (const name of readdirSync(join(root, "src")).sort()) {
  digest.update(name).update("\0").update(readFileSync(join(root, "src", name))).update("\0");
}
const banner = `/* Longhouse. Built by "npm run build" in web/. Sources: sha256-${digest.digest("hex")} */`;

const result = await build({
  absWorkingDir: root,
  entryPoints: ["src/app.ts", "src/style.css"],
  outdir: "dist",
  bundle: true,
  minify: true,
  charset: "utf8",
  format: "iife",
  target: ["es2022", "chrome110", "firefox110", "safari16"],
  banner: { js: banner, css: banner },
  write: false,
});
const built = new Map(result.outputFiles.map((file) => [file.path, file.text]));
for (const name of ["index.html", "icon.svg"]) {
  built.set(join(root, "dist", name), readFileSync(join(root, "src", name), "utf8"));
}

if (process.argv.includes("--check")) {
  const stale = [...built].filter(([path, text]) => {
    try {
      return readFileSync(path, "utf8") !== text;
    } catch {
      return true;
    }
  });
  for (const [path] of stale) console.error(`${path} is not in step with src/: run "npm run build" in web/`);
  process.exit(stale.length === 0 ? 0 : 1);
}
mkdirSync(join(root, "dist"), { recursive: true });
for (const [path, text] of built) writeFileSync(path, text);
