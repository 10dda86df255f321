// Links to a place on this page scroll there. Gradio's <base> makes a browser load another page for them.
document.addEventListener('click', (event) => {
  const link = event.target.closest?.('a[href^="#"]');
  const place = link && document.getElementById(link.getAttribute('href').slice(1));
  if (!place) return;
  event.preventDefault();
  place.scrollIntoView();
});
