// Stream ids that are made of columns, such as `pump-{id}`; the same rule as stepwell_client/wire/stream_templates.py.

/** The id of each row: the template as it stands, or filled from the row's columns. Throws an Error about a column. */
export function idsOf(template, { header, rows }) {
  const parts = template.split(/\{([^{}]*)\}/);
  if (parts.length === 1) return rows.map(() => template);
  const columns = parts.filter((_, i) => i % 2).map((name) => {
    const at = header.indexOf(name);
    if (at < 0) throw new Error(`There is no column ${name}, which the id names; the columns are ${header.join(", ")}.`);
    return at;
  });
  return rows.map((row, n) =>
    parts.map((part, i) => {
      if (i % 2 === 0) return part;
      const value = row[columns[(i - 1) / 2]];
      if (!value) throw new Error(`Row ${n + 1}: ${part} is empty, which the id names.`);
      return escaped(value);
    }).join(""),
  );
}

/** A text in the characters of an id: each byte of UTF-8 that no id has, and `@`, is `@` and its hex. */
export function escaped(value) {
  const hex = (byte) => `@${byte.toString(16).toUpperCase().padStart(2, "0")}`;
  const one = (byte) => (/[A-Za-z0-9._:-]/.test(String.fromCharCode(byte)) ? String.fromCharCode(byte) : hex(byte));
  return Array.from(new TextEncoder().encode(value), one).join("");
}
