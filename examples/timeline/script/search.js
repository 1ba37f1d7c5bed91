// SPDX-License-Identifier: MPL-2.0
// Search, keyboard, and the beginning: the last part.

// --- Search ----------------------------------------------------------------------------------------

let hits = [];
let here = -1;

/** Small letters without accents; marks are spaces, an apostrophe is nothing. */
function plain(shown) {
  return shown.normalize('NFKD').replace(/\p{M}/gu, '').toLowerCase().replace(/ß/g, 'ss')
    .replace(/['’ʼ]/g, '').replace(/[^\p{L}\p{N}\p{S}%&#@]+/gu, ' ');
}

/** The whole text as it is searched, and the word of each of its characters. Made when first needed. */
let haystack = null;
function gather() {
  const parts = [];
  const owner = [];
  let before = ' ';
  let lane = null;
  const add = (piece, word) => {
    for (const c of piece) {
      if (c === ' ' && before === ' ') continue;
      parts.push(c);
      for (let unit = 0; unit < c.length; unit++) owner.push(word);
      before = c;
    }
  };
  words.forEach((word, n) => {
    // No phrase goes from one person to another.
    if (lane !== null && lane !== word.lane) {
      add('\n', n);
      before = ' ';
    } else if (word.isLed || n === word.paragraph.first) add(' ', n);
    lane = word.lane;
    add(plain(word.text.trim()), n);
  });
  return { text: parts.join(''), owner };
}

function find(query) {
  for (const hit of hits) {
    for (let n = hit.first; n <= hit.last; n++) words[n].element.classList.remove('hit', 'here');
  }
  hits = [];
  here = -1;
  const wanted = plain(query).trim();
  if (wanted) {
    haystack ??= gather();
    for (let at = haystack.text.indexOf(wanted); at >= 0; at = haystack.text.indexOf(wanted, at + wanted.length)) {
      hits.push({ first: haystack.owner[at], last: haystack.owner[at + wanted.length - 1] });
    }
    for (const hit of hits) {
      for (let n = hit.first; n <= hit.last; n++) words[n].element.classList.add('hit');
    }
  }
  byId('previous').disabled = byId('next').disabled = hits.length === 0;
  // The first from here on, without going there: that is for Enter.
  byId('hits').textContent = query.trim() === '' ? '' : hits.length ? count(hits.length, 'hit', 'hits') : 'no hit';
  redraw();
}

function go(step) {
  if (hits.length === 0) return;
  mark('remove');
  if (here < 0) {
    const onward = hits.findIndex((hit) => words[hit.first].start >= position - 0.001);
    here = step > 0 ? Math.max(onward, 0) : (onward < 0 ? hits.length : onward) - 1;
  } else {
    here += step;
  }
  here = (here + hits.length) % hits.length;
  mark('add');
  byId('hits').textContent = `${(here + 1).toLocaleString('en')} of ${hits.length.toLocaleString('en')}`;
  if (sound && !sound.paused) {
    follows = false;
    drawFollow();
  }
  const word = words[hits[here].first];
  showWord(word, true);
  const x = word.start * perSecond();
  if (x < scroller.scrollLeft || x > scroller.scrollLeft + width()) scroller.scrollLeft = x - width() / 2;
  byId('lanes').scrollTop = (word.lane + 0.5) * rowHeight - byId('lanes').clientHeight / 2;
  redraw();
}

function mark(how) {
  if (here < 0) return;
  for (let n = hits[here].first; n <= hits[here].last; n++) words[n].element.classList[how]('here');
}

let typing = 0;
let found = '';
/** Now, if what stands in the field is not yet found. */
function findNow() {
  clearTimeout(typing);
  if (found !== byId('search').value) {
    found = byId('search').value;
    find(found);
  }
}
byId('search').addEventListener('input', () => {
  clearTimeout(typing);
  typing = setTimeout(findNow, 150);
});
byId('search').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && !event.isComposing) {
    findNow();
    go(event.shiftKey ? -1 : 1);
    event.preventDefault();
  } else if (event.key === 'Escape') {
    byId('search').value = '';
    findNow();
    byId('search').blur();
  }
});
byId('next').addEventListener('click', () => go(1));
byId('previous').addEventListener('click', () => go(-1));

// --- Keyboard --------------------------------------------------------------------------------------

document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const into = event.target;
  if (into.matches('input[type="search"], select')) return;
  const presses = into.matches('button');
  const keys = {
    ' ': () => (presses || !sound ? false : toggle()),
    '/': () => byId('search').select(),
    ArrowLeft: () => jump(-JUMP),
    ArrowRight: () => jump(JUMP),
    '+': () => zoom(2, anchor()),
    '=': () => zoom(2, anchor()),
    '-': () => zoom(0.5, anchor()),
    0: () => zoom(0, 0),
  };
  const act = keys[event.key];
  if (act && act() !== false) event.preventDefault();
});

// --- Begin -----------------------------------------------------------------------------------------

readColours();
const sizes = new ResizeObserver(() => requestAnimationFrame(layOut));
sizes.observe(byId('controls'));
sizes.observe(byId('timeline'));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => {
  readColours();
  redraw();
});
layOut();
update({});
