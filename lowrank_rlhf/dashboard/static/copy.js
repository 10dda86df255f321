// Copies the answer above a copy button; the button then says so for two seconds.
async function copyText(answer) {
  if (navigator.clipboard) return navigator.clipboard.writeText(answer.textContent);
  getSelection().selectAllChildren(answer);  // over HTTP from another machine there is no clipboard to write to
  document.execCommand('copy');
}
element.addEventListener('click', async (event) => {
  const button = event.target.closest('button.copy');
  if (!button) return;
  await copyText(button.parentElement.previousElementSibling);
  const before = button.textContent;
  if (before === button.dataset.copied) return;
  button.textContent = button.dataset.copied;
  setTimeout(() => { button.textContent = before; }, 2000);
});
