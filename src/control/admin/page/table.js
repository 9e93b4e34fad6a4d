
// Tables that their headers sort.

// More would keep the browser busy, and nobody reads them.
const ROWS_MAX = 200;

/** A part of a cell. `press` makes it a button. */
const part = (text, kind = "", press = null) => ({ text, kind, press });

/** Rows under headers that sort them. A column has a `title`, which may be
 * `short` where there is no room, `show` for the parts of a cell, and `value` to sort by. */
class Table {
  constructor(host, label, columns, sorted = null) {
    Object.assign(this, { columns, sorted, rows: [], cells: [] });
    const table = make("table");
    // Said again, as they get lost where a narrow page lays it out in another way.
    table.setAttribute("role", "table");
    table.setAttribute("aria-label", label);
    const head = make("tr");
    head.setAttribute("role", "row");
    this.heads = columns.map((column, index) => {
      const cell = make("th", column.number ? "number" : "");
      cell.scope = "col";
      cell.setAttribute("role", "columnheader");
      const button = make("button", "", column.short ?? column.title);
      if (column.short) button.setAttribute("aria-label", column.title);
      button.type = "button";
      button.addEventListener("click", () => this.sort(index));
      cell.append(button);
      head.append(cell);
      return cell;
    });
    this.body = make("tbody");
    const thead = make("thead");
    thead.append(head);
    for (const group of [thead, this.body]) group.setAttribute("role", "rowgroup");
    table.append(thead, this.body);
    host.append(table);
    this.tell();
  }

  sort(index) {
    const other = this.sorted?.index !== index;
    const down = Boolean(this.columns[index].number || this.columns[index].worst);
    this.sorted = { index, down: other ? down : !this.sorted.down };
    this.tell();
    this.fill(this.rows);
  }

  tell() {
    this.heads.forEach((head, index) => {
      if (this.sorted?.index !== index) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", this.sorted.down ? "descending" : "ascending");
    });
  }

  /** Shows the first of these in order; how many that are. */
  fill(rows) {
    this.rows = rows;
    const first = this.ordered(rows).slice(0, ROWS_MAX);
    while (this.cells.length > first.length) {
      this.cells.pop();
      this.body.lastChild.remove();
    }
    while (this.cells.length < first.length) this.cells.push(this.row());
    first.forEach((row, at) => this.columns.forEach((column, index) => {
      const cell = this.cells[at][index];
      const parts = column.show(row);
      const sign = parts.map((it) => `${it.kind}\n${it.text}`).join("\r");
      if (cell.sign === sign) return;
      cell.sign = sign;
      cell.element.replaceChildren(...parts.map(rendered));
    }));
    return first.length;
  }

  ordered(rows) {
    if (!this.sorted) return rows;
    const { index, down } = this.sorted;
    const keyed = rows.map((row) => ({ row, key: this.columns[index].value(row) }));
    const order = typeof keyed[0]?.key === "string" ? collator.compare : (a, b) => a - b;
    keyed.sort((a, b) => (down ? order(b.key, a.key) : order(a.key, b.key)));
    return keyed.map((it) => it.row);
  }

  row() {
    const row = make("tr");
    row.setAttribute("role", "row");
    this.body.append(row);
    return this.columns.map((column) => {
      const kinds = ["number", "wide", "fixed"].filter((kind) => column[kind]).join(" ");
      const cell = make(column.head ? "th" : "td", kinds);
      if (column.head) cell.scope = "row";
      else if (!column.plain) cell.dataset.label = column.title;
      cell.setAttribute("role", column.head ? "rowheader" : "cell");
      row.append(cell);
      return { element: cell, sign: null };
    });
  }
}

const collator = new Intl.Collator(undefined, { numeric: true });

const rendered = ({ text, kind, press }) => {
  const made = make(press ? "button" : "span", kind, text);
  if (press) {
    made.type = "button";
    made.addEventListener("click", press);
  }
  return made;
};

