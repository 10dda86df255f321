// Shows the figures of the token under the pointer or with the focus below its answer; arrow keys move the focus.
const tokenOf = (event) => event.target.closest('[role="option"]');
function show(event) {
  const token = tokenOf(event);
  if (!token) return;
  const card = token.closest('section');
  for (const other of card.querySelectorAll('[aria-selected="true"]')) other.setAttribute('aria-selected', 'false');
  token.setAttribute('aria-selected', 'true');
  card.querySelector('.figures').textContent = token.getAttribute('aria-label');
}
function focusOn(token) {
  for (const other of token.parentElement.querySelectorAll('[tabindex="0"]')) other.tabIndex = -1;
  token.tabIndex = 0;
  token.focus();
}
element.addEventListener('pointerover', show);
element.addEventListener('focusin', show);
element.addEventListener('click', (event) => { if (tokenOf(event)) focusOn(tokenOf(event)); });
element.addEventListener('keydown', (event) => {
  const token = tokenOf(event);
  if (!token || event.ctrlKey || event.metaKey || event.altKey) return;
  const list = token.parentElement;
  const next = {
    ArrowRight: token.nextElementSibling, ArrowLeft: token.previousElementSibling,
    Home: list.firstElementChild, End: list.lastElementChild,
  };
  if (!(event.key in next)) return;
  event.preventDefault();
  if (next[event.key]) focusOn(next[event.key]);
});
