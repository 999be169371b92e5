// Bundle the parts of plotly.js that figures use. The descriptions of attributes, a tenth of the size, are left out.
import { readdir, readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";
import inlineCss from "esbuild-plugin-inline-css";
import { parse } from "acorn";
import { full } from "acorn-walk";

const DOCUMENTATION = new Set(["description"]);

// Whether an expression is text alone: a literal, a sum of literals, or a joined array of them.
const isText = (node) =>
  node.type === "Literal" ? typeof node.value === "string"
  : node.type === "BinaryExpression" ? isText(node.left) && isText(node.right)
  : node.type === "ArrayExpression" ? node.elements.every(isText)
  : node.type === "CallExpression" &&
    node.callee.type === "MemberExpression" && node.callee.property.name === "join" && isText(node.callee.object);

const withoutDocumentation = {
  name: "without-documentation",
  setup(context) {
    context.onLoad({ filter: /plotly\.js.src.*\.js$/ }, async ({ path }) => {
      const source = await readFile(path, "utf8");
      const cuts = [];
      full(parse(source, { ecmaVersion: "latest", sourceType: "script", allowReturnOutsideFunction: true }), (node) => {
        if (node.type !== "ObjectExpression") return;
        for (const one of node.properties) {
          if (one.type === "Property" && DOCUMENTATION.has(one.key.name) && isText(one.value)) cuts.push([one.value.start, one.value.end]);
        }
      });
      cuts.sort((a, b) => b[0] - a[0]);
      return { contents: cuts.reduce((text, [start, end]) => text.slice(0, start) + '""' + text.slice(end), source), loader: "js" };
    });
  },
};

const { metafile } = await build({
  entryPoints: ["entry.js"],
  outfile: "plotly.min.js",
  bundle: true,
  metafile: true,
  minify: true,
  format: "iife",
  globalName: "Plotly",
  target: "es2018",
  charset: "ascii",
  legalComments: "none",
  banner: { js: "/* plotly.js v4.1.1 (bar, box, heatmap, scatter). Copyright Plotly, Inc. MIT licence. */" },
  alias: { stream: "stream-browserify" },
  define: { global: "window", "define.amd": "false", "process.env.NODE_DEBUG": "false" },
  plugins: [withoutDocumentation, inlineCss()],
});

// The licences of everything inside.
const packages = new Set(Object.keys(metafile.inputs).flatMap((path) => path.match(/.*node_modules\/(@[^/]+\/)?[^/]+/)?.[0] ?? []));
const licences = [];
for (const folder of [...packages].sort()) {
  const { name, version, license } = JSON.parse(await readFile(`${folder}/package.json`, "utf8"));
  const file = (await readdir(folder)).find((one) => /^licen[cs]e/i.test(one));
  licences.push(`${name} ${version}: ${license}\n\n${file ? (await readFile(`${folder}/${file}`, "utf8")).trim() : "(no text in the package)"}\n`);
}
await writeFile("LICENSES.txt", licences.join(`\n${"-".repeat(80)}\n\n`));
