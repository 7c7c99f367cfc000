'use strict';
(() => {
  // Theme: as the system has it, light, dark; remembered where the browser allows it.
  const root = document.documentElement, button = document.getElementById('theme');
  const themes = ['auto', 'light', 'dark'];
  let theme = new URLSearchParams(location.search).get('theme');
  try { theme = theme || localStorage.getItem('report-theme'); } catch (error) { /* from disk */ }
  const apply = () => {
    if (themes.indexOf(theme) < 1) { theme = 'auto'; delete root.dataset.theme; } else { root.dataset.theme = theme; }
    button.textContent = 'Theme: ' + theme;
  };
  button.hidden = false;
  button.addEventListener('click', () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try { localStorage.setItem('report-theme', theme); } catch (error) { /* from disk */ }
    apply();
  });
  apply();

  // Tables: a click on a heading sorts; numbers are compared as numbers, what is missing comes last.
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value !== undefined ? cell.dataset.value : cell.textContent.trim().replace('−', '-');
    const number = parseFloat(text);
    return text === '' || text === '–' ? null : isNaN(number) ? text.toLowerCase() : number;
  };
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return (a < b ? -1 : a > b ? 1 : 0) * sign;
  };
  for (const table of document.querySelectorAll('table.sortable')) {
    table.tHead.querySelectorAll('th').forEach((heading, column) => {
      heading.setAttribute('role', 'button');
      heading.tabIndex = 0;
      const sort = () => {
        const rising = heading.getAttribute('aria-sort') === 'descending' || (column === 0 && !heading.hasAttribute('aria-sort'));
        table.tHead.querySelectorAll('th').forEach((other) => other.removeAttribute('aria-sort'));
        heading.setAttribute('aria-sort', rising ? 'ascending' : 'descending');
        const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
        rows.sort((a, b) => compare(a[0], b[0], rising ? 1 : -1));
        table.tBodies[0].append(...rows.map((pair) => pair[1]));
      };
      heading.addEventListener('click', sort);
      heading.addEventListener('keydown', (event) => { if (event.key === 'Enter') sort(); });
    });
  }

  // Browser: sorting and filtering of images.
  for (const section of document.querySelectorAll('.browser')) {
    const form = section.querySelector('form'), items = section.querySelector('.items');
    const all = [...items.children].map((node) => ({ node, data: JSON.parse(node.dataset.item) }));
    const value = (data, key, chosen) => (key === 'error' && chosen !== '' && data.error !== null ? data.classes[chosen] : data[key]);
    const update = () => {
      const chosen = form.elements.class.value, key = form.elements.sort.value;
      for (const range of form.querySelectorAll('[type=range]')) range.nextElementSibling.textContent = range.value + ' %';
      for (const box of form.querySelectorAll('[name=show]')) section.classList.toggle('hide-' + box.value, !box.checked);
      const least = form.elements.error.value / 100, most = form.elements.confidence.value / 100, apart = form.elements.disagreement ? form.elements.disagreement.value / 100 : 0;
      let count = 0;
      for (const { node, data } of all) {
        const error = value(data, 'error', chosen);
        const shown = (chosen === '' || chosen in data.classes) && (least === 0 || (error !== null && error >= least))
          && (most === 1 || data.confidence <= most) && (apart === 0 || (data.disagreement !== null && data.disagreement >= apart));
        node.hidden = !shown;
        count += shown;
      }
      const get = (item) => { const found = value(item.data, key, chosen); return found === undefined ? null : found; };
      all.sort((a, b) => compare(get(a), get(b), Number(form.elements.order.value)));
      items.append(...all.map((item) => item.node));
      section.querySelector('.count').textContent = count + ' of ' + all.length + ' images';
    };
    form.hidden = false;
    form.addEventListener('input', update);
    form.addEventListener('submit', (event) => event.preventDefault());
    update();
  }

  // Enlarged pictures.
  const dialog = document.getElementById('large');
  document.addEventListener('click', (event) => {
    if (event.target.matches('img.thumb')) {
      const article = event.target.closest('article'), cell = event.target.closest('.cell');
      dialog.querySelector('img').src = event.target.src;
      dialog.querySelector('img').style.imageRendering = event.target.matches('.photo img, .confidence img') ? 'auto' : 'pixelated';
      dialog.querySelector('p').textContent = [article.querySelector('h3').firstChild.textContent.trim(), cell.querySelector('h4').textContent, event.target.alt].join(' · ');
      dialog.showModal();
    } else if (event.target === dialog) {
      dialog.close();
    }
  });
})();
