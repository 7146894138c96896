// Sorting of every table of class "sortable"; `moved` is called for each row, in the new order.
const sortable = (table, moved = () => {}) => {
  const body = table.tBodies[0];
  const sort = (column, header) => {
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const number = (text) => (text === "inf" ? Infinity : text === "-inf" ? -Infinity : Number(text));
    const rows = [...body.rows];
    rows.sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === ""); // undefined values are last, whatever the order
      const text = column === 0 || Number.isNaN(number(x)) || Number.isNaN(number(y));
      const order = text ? x.localeCompare(y, undefined, { numeric: true }) : number(x) === number(y) ? 0 : number(x) - number(y);
      return descending ? -order : order;
    });
    for (const row of rows) {
      body.append(row);
      moved(row);
    }
  };
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sort(column, header));
  });
};
document.querySelectorAll("table.sortable").forEach((table) => sortable(table));

// Sorting and filtering of the table of cases; the pictures below follow it. Without it the page shows everything.
(() => {
  const table = document.getElementById("case-table");
  const tools = document.getElementById("case-tools");
  if (!table || !tools) return;
  const body = table.tBodies[0];
  const pictures = document.getElementById("pictures");
  const search = document.getElementById("search");
  const size = document.getElementById("size");
  const shown = document.getElementById("shown");
  const pictureOf = (row) => document.getElementById(row.dataset.picture);

  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    let count = 0;
    for (const row of body.rows) {
      const fits = row.cells[0].textContent.toLowerCase().includes(wanted) && (!size.value || row.dataset.size === size.value);
      row.hidden = !fits;
      const picture = pictureOf(row);
      if (picture) picture.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${body.rows.length} cases`;
  };

  sortable(table, (row) => {
    const picture = pictureOf(row);
    if (picture) pictures.append(picture);
  });
  search.addEventListener("input", filter);
  size.addEventListener("change", filter);
  tools.hidden = false;
  filter();
})();
