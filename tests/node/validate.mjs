// Validates AsyncAPI documents with the official parser: node validate.mjs FILE...
import { readFileSync } from "node:fs";
import { Parser } from "@asyncapi/parser";

const SEVERITIES = ["error", "warning"]; // what is only information or a hint passes
const parser = new Parser();
let faults = 0;
for (const path of process.argv.slice(2)) {
  const { document, diagnostics } = await parser.parse(readFileSync(path, "utf8"));
  const found = diagnostics.filter(({ severity }) => severity < SEVERITIES.length);
  for (const { severity, message, path: where } of found) {
    console.error(`${path}: ${SEVERITIES[severity]}: ${where.join(".")}: ${message}`);
  }
  faults += found.length;
  if (document) {
    console.log(`${path}: ${document.messages().all().length} messages, AsyncAPI ${document.version()}`);
  } else {
    faults += 1;
  }
}
process.exit(faults ? 1 : 0);
