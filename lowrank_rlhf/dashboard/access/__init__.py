"""Who may open the page: login, password and the guard of every request."""
