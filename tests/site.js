// What tests/site.py runs in a browser: pages are opened in frames, two at a time, and looked at.

const frames = (count) => new Promise((done) => {
  const next = (left) => left ? requestAnimationFrame(() => next(left - 1)) : done();
  next(count);
});

const luminance = (colour) => {
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = colour.match(/[\d.]+/g).map((v) => linear(v / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};

// The colour that is seen behind an element.
const behind = (win, element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = win.getComputedStyle(e).backgroundColor;
    if (!/, 0\)$/.test(colour)) return colour;
  }
  return "rgb(255, 255, 255)";
};

const contrast = (win, element) => {
  const [a, b] = [win.getComputedStyle(element).color, behind(win, element)].map(luminance);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
};

// The first element that reaches beyond the window, and lies in nothing that scrolls by itself.
const outside = (win) => {
  const doc = win.document, width = doc.documentElement.clientWidth;
  const contained = (e) => {
    for (let p = e.parentElement; p && p !== doc.body; p = p.parentElement)
      if (win.getComputedStyle(p).overflowX !== "visible") return true;
    return false;
  };
  const beyond = (e) => e.getBoundingClientRect().right > width + 1 && !contained(e);
  return [...doc.body.querySelectorAll("*")].find(beyond)?.outerHTML.slice(0, 90);
};

async function page(win) {
  const doc = win.document, wrong = [], article = doc.querySelector("article") || doc.body;
  if (win.MathJax) await win.MathJax.startup.promise;
  const formulas = doc.querySelectorAll(".math"), drawn = doc.querySelectorAll(".math mjx-container");
  if (drawn.length < formulas.length) wrong.push(`${formulas.length - drawn.length} formulas not drawn`);
  if (doc.querySelector("mjx-merror, [data-mjx-error]")) wrong.push("MathJax reports an error");
  const texts = doc.createTreeWalker(article, win.NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.data, tex = /\\(frac|sum|partial|mathbf|[()[\]])|\$\$/;
    if (tex.test(text) && !texts.currentNode.parentElement.closest("code, pre, script, mjx-container"))
      wrong.push(`raw TeX: ${text.trim().slice(0, 60)}`);
  }
  for (const width of WIDTHS) {
    win.frameElement.width = width;
    await frames(2);
    const sideways = doc.documentElement.scrollWidth - doc.documentElement.clientWidth;
    if (sideways > 0) wrong.push(`${width} px: scrolls sideways by ${sideways} px: ${outside(win)}`);
  }
  const backgrounds = [];
  for (const theme of ["light", "dark"]) {
    doc.body.dataset.theme = theme;
    backgrounds.push(luminance(behind(win, article)));
    const read = [...article.querySelectorAll(":is(p, li, td, th, h1, h2, h3, dt, pre, code)")].slice(0, 200);
    const faint = read.find((element) => contrast(win, element) < 4.5);
    if (faint) wrong.push(`${theme}: contrast ${contrast(win, faint).toFixed(1)}: ${faint.outerHTML.slice(0, 60)}`);
  }
  if (!(backgrounds[0] > 0.5 && backgrounds[1] < 0.1)) wrong.push(`light and dark: ${backgrounds}`);
  return wrong;
}

async function search(win) {
  for (let i = 0; i < 100; i++) {
    const results = win.document.querySelector("#search-results");
    const found = [...results.querySelectorAll("li a")].map((a) => a.getAttribute("href"));
    if (found.length > 5 || /Search finished|did not match/.test(results.innerText)) return found;
    await new Promise((done) => setTimeout(done, 50));
  }
  return [];
}

async function all(urls, look) {
  const seen = {}, left = [...urls];
  const work = async () => {
    while (left.length) {
      const url = left.shift(), frame = document.createElement("iframe");
      [frame.width, frame.height, frame.src] = [WIDTHS[0], 900, url];
      document.body.append(frame);
      await new Promise((loaded) => frame.onload = loaded);
      try { seen[url] = await look(frame.contentWindow); } catch (error) { seen[url] = [String(error)]; }
      frame.remove();
    }
  };
  await Promise.all([work(), work()]);
  await fetch("/seen", {method: "POST", body: JSON.stringify(seen)});
}
