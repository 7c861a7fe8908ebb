"""The learning half of a step: from graded responses to an update of the student.

learner       score, weigh, update: the three verbs of the step
passes        which forward-only passes a configuration needs
models        the student with its optimizer
frozen/       the frozen models beside it
tenants       who holds the memory of a rank's device
batch         the step's responses: facts of all of them, tokens of those held here
deal          which rank holds which response, and their exchange
privileged    what the teacher reads, and what it is taken to say
scorer        log-probabilities by a forward pass
algorithms/   which weight each response gets in which term
rows          all that the loss reads, laid out on the rows of a pack
head          from the last hidden states to scores and to the loss
balance       the load-balancing loss of a mixture of experts
observe       the numbers of one step
nonfinite     losses and gradients that are not finite: no update
"""
