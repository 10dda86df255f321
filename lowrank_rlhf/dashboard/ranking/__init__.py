"""Ranking screen of the dashboard and of the annotators' page."""
