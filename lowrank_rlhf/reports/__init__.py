"""Reports: tables, alarms and charts, as HTML, Markdown and terminal text."""
