"""A load tester for maskserve, in a process of its own: `python -m loadtest --help`.

    options    what was asked            target     where the requests go          pictures   what is sent
    schedule   when they are due         clock      waking up at that moment       wire       one connection
    pool       many connections          answers    is an answer right?            recording  what happened to each
    load       one run, open or closed   statistics what it means                  progress   the live line
    search     --find-max                tune       --tune                         report     JSON and a page; text

A latency counts from the moment a request was *due*. A tester that waits for a slow answer before it asks again, and
counts from there, leaves out exactly the requests that would have suffered ("coordinated omission", Gil Tene). Here the
schedule is fixed before the first request, and a server that stalls for a second is charged for everything due in it.
"""
