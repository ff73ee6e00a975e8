// What the page does beyond showing: tables sort by their headings, wide ones say so, lost items filter by model.
// Without it everything is there, in the order of params.yaml.
(() => {
  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.sort !== undefined) return Number(cell.dataset.sort);
    const text = cell.textContent.trim();
    const number = Number(text.replace(/\u2212/g, "-").replace(/\s*%$/, ""));
    return text !== "" && !Number.isNaN(number) ? number : text;
  };
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    if (typeof a === "number" || typeof b === "number") return typeof a === "number" ? -1 : 1;
    return a.localeCompare(b, "en");
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    const body = table.tBodies[0];
    const first = [...body.rows];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      const arrow = document.createElement("span");
      arrow.className = "arrow";
      button.insertBefore(arrow, button.querySelector(".unit"));
      head.append(button);
      button.addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        // numbers start with the largest, names with a; the third click restores the order of the page
        const start = first.some((row) => typeof value(row, column) === "number") ? "descending" : "ascending";
        const other = start === "descending" ? "ascending" : "descending";
        const now = before === start ? other : before === other ? null : start;
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        if (now) head.setAttribute("aria-sort", now);
        const sign = now === "descending" ? -1 : 1;
        const rows = [...first];
        if (now) {
          rows.sort((a, b) => {
            const [x, y] = [value(a, column), value(b, column)];
            const missing = typeof x !== typeof y; // what was not measured stays last either way
            return missing ? compare(x, y) : sign * compare(x, y);
          });
        }
        body.append(...rows);
      });
    });
  }

  const scrolls = [...document.querySelectorAll(".scroll")];
  const mark = () => scrolls.forEach((one) => one.classList.toggle("wide", one.scrollWidth > one.clientWidth + 1));
  mark();
  addEventListener("resize", mark);
  document.addEventListener("toggle", mark, true);

  for (const list of document.querySelectorAll("ul.items")) {
    const models = list.dataset.models.split("\n").map((line) => [line.split("=")[0], line.slice(line.indexOf("=") + 1)]);
    if (models.length < 2) continue;
    const label = document.createElement("label");
    const select = document.createElement("select");
    const count = document.createElement("span");
    count.setAttribute("role", "status");
    label.className = "filter";
    label.append("lost by ", select, " ", count);
    for (const [name, text] of [["", "any model"], ...models]) select.append(new Option(text, name));
    select.addEventListener("change", () => {
      let shown = 0;
      for (const item of list.children) {
        item.hidden = select.value !== "" && !item.dataset.lost.split(" ").includes(select.value);
        shown += item.hidden ? 0 : 1;
      }
      count.textContent = `${shown} shown`;
    });
    list.before(label);
  }
})();
