"use strict";
(() => {
  const rows = JSON.parse(document.getElementById("facts").textContent);
  const search = document.getElementById("search");
  const status = document.getElementById("status");
  const home = document.getElementById("modules");

  // A name may begin with a dot less than its parent's: `patches.layer3.se` has no row for `patches`.
  const byPath = new Map(rows.map((row) => [row.path, row]));
  const parentOf = (path) => {
    while (path.includes(".")) {
      path = path.slice(0, path.lastIndexOf("."));
      if (byPath.has(path)) return path;
    }
    return null;
  };
  const tree = () => {
    const copies = new Map(rows.map((row) => [row.path, { ...row }]));
    const roots = [];
    for (const [path, row] of copies) {
      const parent = parentOf(path);
      if (parent === null) roots.push(row);
      else (copies.get(parent)._children ??= []).push(row);
    }
    return roots;
  };

  const copyText = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // a page that was opened as a file may not use the clipboard's interface
      const area = document.createElement("textarea");
      area.value = text;
      area.setAttribute("aria-label", "copied path");
      document.body.append(area);
      area.select();
      const done = document.execCommand("copy");
      area.remove();
      if (!done) throw new Error("this browser does not let a page copy");
    }
  };
  const button = (name, label, text) => {
    const found = document.createElement("button");
    found.type = "button";
    found.className = name;
    found.setAttribute("aria-label", label);
    found.textContent = text;
    return found;
  };
  const showPath = (cell) => {
    const path = cell.getValue();
    const place = document.createElement("span");
    const name = document.createElement("span");
    name.className = "path";
    name.textContent = path || "(the whole model)";
    place.append(name);
    if (cell.getData().target) {
      const copy = button("copy", `copy ${path}`, "copy");
      copy.addEventListener("click", (event) => {
        event.stopPropagation();
        copyText(path).then(
          () => { status.textContent = `copied ${path}`; copy.focus(); },
          (error) => { status.textContent = `not copied: ${error.message}`; });
      });
      place.append(copy);
    }
    return place;
  };
  const showText = (cell) => document.createTextNode(cell.getValue() ?? "");
  const showNumber = (cell) => {
    const value = cell.getValue();
    if (value === null || value === undefined) return document.createTextNode("-");
    const digits = cell.getField() === "milliseconds" ? 3 : 0;
    return document.createTextNode(value.toLocaleString("en-US", { maximumFractionDigits: digits, minimumFractionDigits: digits }));
  };
  const text = (title, field, more) => ({ title, field, formatter: showText, sorter: "string", ...more });
  const number = (title, field, more) => ({ title, field, formatter: showNumber, sorter: "number", hozAlign: "right", ...more });

  const columns = [
    { title: "path", field: "path", formatter: showPath, sorter: "string", minWidth: 330, widthGrow: 3 },
    text("type", "type", { minWidth: 130 }), text("part", "part", { minWidth: 80 }),
    text("shape", "shape", { minWidth: 120, headerSort: false }), text("layout", "layout", { minWidth: 80 }),
    number("stride", "stride", { minWidth: 80 }), number("parameters", "parameters", { minWidth: 110 }),
    number("trainable", "trainable", { minWidth: 110 }), number("FLOPs", "flops", { minWidth: 130 }),
    number("bytes kept", "kept", { minWidth: 120 }), number("ms", "milliseconds", { minWidth: 80 }),
    number("calls", "calls", { minWidth: 70 }), text("note", "note", { minWidth: 160, widthGrow: 2 }),
  ];
  if (rows.some((row) => row.other)) columns.splice(1, 0, text("in the other model", "other", { minWidth: 160 }));

  const firstLevel = (row, level) => level < 1;
  const table = new Tabulator(home, {
    data: tree(), columns, layout: "fitColumns", height: "70vh", index: "path",
    dataTree: true, dataTreeStartExpanded: firstLevel, dataTreeBranchElement: false,
    dataTreeExpandElement: button("tree", "expand", "+"), dataTreeCollapseElement: button("tree", "collapse", "\u2212"),
    columnDefaults: { tooltip: false, resizable: false },
  });
  const say = (count) => { status.textContent = `${count} of ${rows.length} modules match`; };
  const find = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const has = (row) => words.every((word) => `${row.path} ${row.type} ${row.part ?? ""} ${row.note} ${row.other ?? ""}`.toLowerCase().includes(word));
    const found = words.length ? rows.filter(has).map((row) => ({ ...row })) : tree();
    table.setData(found).then(() => { words.length ? say(found.length) : (status.textContent = ""); home.dataset.found = search.value; });
  };
  const keepFocus = (row) => { row.getElement().querySelector("button.tree")?.focus(); };
  table.on("dataTreeRowExpanded", keepFocus);
  table.on("dataTreeRowCollapsed", keepFocus);
  table.on("tableBuilt", () => {
    // by keyboard: each header that sorts takes the focus, and Enter or Space is a click
    for (const header of home.querySelectorAll(".tabulator-sortable")) {
      header.tabIndex = 0;
      header.addEventListener("keydown", (event) => {
        if (event.target !== header || (event.key !== "Enter" && event.key !== " ")) return;
        event.preventDefault();
        header.click();
      });
    }
    // the library's row groups stand in each other, or around what scrolls
    for (const part of [".tabulator-header-contents", ".tabulator-table"]) home.querySelector(part).setAttribute("role", "presentation");
    home.querySelector(".tabulator-tableholder").setAttribute("role", "rowgroup");
    search.addEventListener("input", find);
    const all = document.getElementById("all");
    all.addEventListener("click", () => {
      const open = all.getAttribute("aria-pressed") !== "true";
      all.setAttribute("aria-pressed", String(open));
      search.value = "";
      table.options.dataTreeStartExpanded = open || firstLevel;
      table.setData(tree());
    });
    document.documentElement.dataset.ready = String(performance.now());
  });
})();
