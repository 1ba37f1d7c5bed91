// SPDX-License-Identifier: MPL-2.0
// The head of the page, the lanes' names, and the words.

// --- Head and lanes' names -------------------------------------------------------------------------

function language() {
  try {
    return data.language && new Intl.DisplayNames(['en'], { type: 'language' }).of(data.language);
  } catch {
    return data.language;
  }
}

byId('title').textContent = data.title;
function facts() {
  const unsure = words.filter((w) => w.confidence < UNSURE).length;
  const both = overlap();
  const all = [
    clock(total),
    data.speakers.length ? count(data.speakers.length, 'speaker', 'speakers') : '',
    data.turns.length ? count(data.turns.length, 'turn', 'turns') : '',
    count(words.length, 'word', 'words'),
    language(),
    unsure ? `${unsure.toLocaleString('en')} unsure` : '',
    both >= 0.5 ? `${clock(both)} two at once` : '',
  ];
  byId('facts').replaceChildren(...all.filter(Boolean).map((fact) => make('span', '', fact)));
}
facts();

const rowHeight = lanes.length <= 6 ? 46 : lanes.length <= 9 ? 32 : 24;
byId('timeline').style.setProperty('--row', `${rowHeight}px`);
byId('labels').classList.toggle('dense', rowHeight < 40);
lanes.forEach((lane, n) => {
  const share = talk > 0 ? lane.talk / talk : 0;
  const percent = `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
  const item = make('li');
  const button = make('button');
  button.type = 'button';
  button.title = `${lane.name}${lane.id && lane.id !== lane.name ? ` (${lane.id})` : ''}: ${clock(lane.talk)}, `
    + `${percent} of the talk. Press for the next turn`;
  button.setAttribute('aria-label', button.title);
  const name = make('bdi', 'name', lane.name);
  const bar = make('span', 'bar');
  const filled = make('i');
  filled.style.width = `${share * 100}%`;
  bar.append(filled);
  const spokenFor = make('span', 'share', percent);
  spokenFor.append(make('span', 'time', ` · ${clock(lane.talk)}`));
  button.append(make('span', 'dot'), name, bar, spokenFor);
  ownColour(button, n);
  button.addEventListener('click', () => {
    const turn = lane.turns.find((t) => t.start > position + 0.01) ?? lane.turns[0];
    if (turn) seek(turn.start, { show: true });
  });
  item.append(button);
  byId('labels').append(item);
});

// --- The text --------------------------------------------------------------------------------------

const text = byId('text');
if (data.language) text.lang = data.language;
(() => {
  const all = document.createDocumentFragment();
  let before;
  for (const paragraph of data.paragraphs) {
    const section = make('section', 'paragraph');
    const who = make('div', 'who');
    const start = words[paragraph.first].start;
    const at = make('button', 'at', clock(start));
    at.type = 'button';
    at.dataset.word = paragraph.first;
    at.setAttribute('aria-label', `Play from ${clock(start)}`);
    if (data.speakers.length) who.append(make('bdi', 'name', lanes[paragraph.lane].name));
    who.append(at);
    const line = make('p');
    line.dir = 'auto';
    let length = 0;
    paragraph.words.forEach(([shown], n) => {
      const word = words[paragraph.first + n];
      const bare = shown.trimStart();
      if (bare.length < shown.length && n > 0) line.append(' ');
      word.isLed = bare.length < shown.length;
      word.element = make('span', word.confidence < UNSURE ? 'w unsure' : 'w', bare);
      word.element.dataset.word = paragraph.first + n;
      line.append(word.element);
      length += shown.length;
    });
    section.append(who, line);
    section.classList.toggle('again', before === paragraph.lane);
    before = paragraph.lane;
    // What is far off is not laid out: its height is guessed from its length.
    section.style.containIntrinsicSize = `auto ${Math.max(2.2, Math.ceil(length / 72) * 1.6 + 0.4)}rem`;
    ownColour(section, paragraph.lane);
    paragraph.section = section;
    all.append(section);
  }
  if (words.length === 0) all.append(make('p', 'nothing', 'There are no words in this transcript.'));
  text.append(all);
  byId('legend').querySelector('.sample').parentElement.hidden = words.length === 0;
})();

text.addEventListener('click', (event) => {
  const target = event.target.closest('[data-word]');
  // Whoever marks words to copy them does not want to hear them.
  if (!target || !getSelection().isCollapsed) return;
  seek(words[target.dataset.word].start, { play: true });
});
text.addEventListener('pointerover', (event) => {
  const target = event.target.closest('.w');
  if (!target || target.title) return;
  const word = words[target.dataset.word];
  target.title = `${clock(word.start, 2)} – ${clock(word.end, 2)}, confidence ${word.confidence} %`;
});
