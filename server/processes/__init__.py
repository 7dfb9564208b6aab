"""Several processes that answer as one, in two forms. What follows after the first picture is of the second form alone.

Whole servers, each with engines of its own and its share of the cores (decision 0010):

                      supervisor          binds the port, starts the others, and starts them again
                    /     |      \\
            server-1  server-2  server-3  the single-process server, told by the board whether others are busy

Fronts for HTTP, pictures and masks, and one engine process for the networks (decision 0008):

                      supervisor          binds the port, starts the others, and starts them again
                    /     |      \\
             front-1   front-2   engine   batches form over all fronts
                 \\________\\_______/
                  a socket each for small messages, and two files in memory for tensors

    front                                  engine
    allocates a place, writes the tensor
    Job(id, place, shape, deadline)  --->  scheduler.submit(view of the place)
                                           allocates a place, writes the outputs
    Answer(id, place, shapes)        <---
    frees the tensor's place; masks are computed on a view of the outputs
    Free(place of the outputs)       --->

No tensor is pickled or sent. A place belongs to the other side from its message until the message that answers it, so a
caller that hangs up cannot make two pictures share one. The files in memory have no name: when the last process that
holds one is gone, so is the file, whichever way they died.

    arena.py       places in a file in memory          wire.py        the messages
    board.py       what all processes may know         ledger.py      what one process has counted
    client.py      a front's way to the engine         totals.py      metrics whose totals are the totals
    accepting.py   who takes the next connection       front.py       the process around it
    serving.py     the engine's way to its fronts      engine.py      the process around it
    spec.py        what the supervisor tells them      supervisor.py  who starts and ends whom
    child.py       how all begin                       outside.py     its port and its signals
    whole.py       a server with engines of its own    handing.py     connections go on to whoever is free
    batcher.py     what a front predicts of the queue
"""
