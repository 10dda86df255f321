"""Ranking by a team: guidelines, invitations, attention checks, decisions on disagreements."""
