"""What happens when things go wrong, one test or more for each row of the table in docs/reliability.md.

A test says which rows it shows with ``@pytest.mark.fault(3)``, and how many cases it went through with the fixture `cases`.
``python -m tests.faults`` runs all of them and writes their counts into that page.
"""
