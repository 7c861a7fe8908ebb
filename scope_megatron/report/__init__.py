"""What a run tells: numbers, lines on a terminal, a picture.

metrics    sums, means and phases of a step, reduced over ranks, and the files they go to
console    progress and tables on the terminal
figure     report.png: the curves of a finished or running run
"""
