/*
 * One staging attempt: two workers, a person, suites that outlive their workers.
 * Generated from the table by staging_fsm.faces.diagrams.spin; docs/model.md explains it.
 *
 *     spin -a staging.pml && cc -O2 -DNOREDUCE -DSAFETY -DNOCLAIM -o pan pan.c && ./pan
 *     spin -a staging.pml && cc -O2 -DNOREDUCE -o pan pan.c && ./pan -a
 *
 * Each atomic block is one thing that reaches the row, the disk or a process, with
 * what a worker thinks before it. Between two of them everybody else may act, and
 * whoever is at work may be killed.
 */

/* Runs beyond the first. */
#ifndef RETRIES
#define RETRIES 1
#endif
/* How many processes are killed at work. */
#ifndef CRASHES
#define CRASHES 2
#endif
/* Launches that are delivered to a worker that did not claim the job. */
#ifndef DUPLICATES
#define DUPLICATES 1
#endif

#define RUNS_MAX (1 + RETRIES)
/* ADOPTIONS_MAX of the snapshot, small enough to be reached. */
#define ADOPTIONS_MAX 1

/* Who moves the row. A worker that is started again is somebody new: whatever bore
 * its name is nobody's from the moment it is killed. */
#define WORKER_A 0
#define WORKER_B 1
#define PERSON 2
#define NOBODY 3

mtype:State = {
    PENDING,
    RUNNING,
    VERDICT_PASSED,
    VERDICT_FAILED,
    TOOL_ERROR,
    DEFERRED,
    EXHAUSTED,
    ADVANCED,
    ROLLED_BACK,
    FAILED_CLOSED,
    LLM_FALLBACK,
    CANCELLED
};
mtype:Event = {
    JOB_CLAIMED,
    RUNNER_DECLINED,
    SUITE_PASSED,
    SUITE_FAILED,
    SUITE_NOT_EXECUTED,
    WORKER_LOST,
    RUN_ADOPTED,
    BUDGET_LEFT,
    BUDGET_SPENT,
    GATE_OPENED,
    GATE_REFUSED,
    CANCEL_REQUESTED
};
mtype:Effect = {
    RUN_SUITE,
    AWAIT_RUN,
    SPEND_BUDGET,
    REQUEUE_JOB,
    HAND_OVER,
    SPAWN_AGENT,
    REAP_RUN,
    NONE
};
mtype:Row = {
    UNWALKED,
    T01,
    T02,
    T03,
    T04,
    T05,
    T06,
    T07,
    T08,
    T09,
    T10,
    T11,
    T12,
    T13,
    T14,
    T15,
    T16,
    T17,
    T18
};

mtype:Status = { QUEUED, TAKEN, DONE, WITHDRAWN };
mtype:Run = { UNBORN, STARTING, LIVE, ORPHANED, PASSED, FAILED, NOT_EXECUTED, CLOSED };
mtype:File = { ABSENT, STALE, FORGED, OUR_SUCCESS, OUR_FAILED };

#define is_terminal(state) ((state) == ADVANCED || (state) == ROLLED_BACK || (state) == FAILED_CLOSED || (state) == LLM_FALLBACK || (state) == CANCELLED)
#define is_ours(file) (file == OUR_SUCCESS || file == OUR_FAILED)
#define is_success(file) (file == STALE || file == FORGED || file == OUR_SUCCESS)
#define goes_on(n) (suite[n] == STARTING || suite[n] == LIVE || suite[n] == ORPHANED)
#define has_result(n) (suite[n] == PASSED || suite[n] == FAILED || suite[n] == NOT_EXECUTED)
#define is_gates (event == GATE_OPENED || event == GATE_REFUSED)
#define is_verdict(state) ((state) == VERDICT_PASSED || (state) == VERDICT_FAILED || \
    (state) == EXHAUSTED)
#define has_ended (status == DONE || status == WITHDRAWN)
#define is_abandoned (owner == role || owner == NOBODY)

/* Our key of the row's metadata. Version 0: the key is absent. */
typedef Snapshot {
    mtype:State state = PENDING;
    byte version;
    byte runs;
    byte adoptions;
    mtype:Row walked = UNWALKED
}

Snapshot row;
/* Snapshot.worker. */
byte owner = NOBODY;
/* The host's columns; its words are queued, running, done, cancelled. */
mtype:Status status = QUEUED;
byte claimed_by = NOBODY;
/* not_before is the due time of the attempt as it is stored: it was queued again. */
bool queued_again;

/* The control folders of the runs, numbered from 1, and the artifact's place. */
mtype:Run suite[4] = UNBORN;
mtype:File artifact = ABSENT;

/* What the kill switch says to every delivery of the first launch. Later launches
 * read it afresh: thrown and restored at any moment. */
bool off_at_first;

byte crashes;
byte duplicates;
bool altered;
bool restarted[2];
chan kill = [0] of { byte };

/* What the properties speak of, and nobody in the model can see. */
byte spawned;
byte living;
byte moves;
bool judged;
bool switched_off;
bool agent_started;

/* The gate moves a work item forwards only for a suite that passed in this attempt, and the artifact in its place is the one this attempt wrote. */
bool no_silent_advance = true;
/* There are never more runs than the budget allows, and none that was not counted before it was started. */
bool budget_is_total = true;
/* The agent is never started beside a live suite, after a verdict, or after a run unless the runner was switched off; no suite starts after it. Where nobody is killed and no launch is delivered twice, it is started once. */
bool one_producer_per_launch = true;
/* There are never two live runs of one job. */
bool one_live_run_per_job = true;
/* Nothing of a run is alive when its job ends. */
bool no_process_outlives_its_run = true;
/* No suite starts while an older artifact is in sight. */
bool stale_artifact_is_never_read = true;
/* No write replaces a terminal state. */
bool terminal_is_forever = true;
/* However often a hand-over is repeated, the work item moves once. */
bool work_item_moves_once = true;
/* Nobody but the gate and a person raises an event that the table refuses. */
bool table_answers_every_event = true;
/* A job ends with its attempt in a terminal state, or with no attempt at all. */
bool ended_job_is_terminal = true;

/* Values that do not live longer than one atomic block. */
hidden mtype:State target;
hidden mtype:Row walked;
hidden mtype:Effect effect;

/* The table. What it has no row for is refused. */
inline walk() {
    if
    /* T01 */ :: s.state == PENDING && event == JOB_CLAIMED -> target = RUNNING; walked = T01
    /* T02 */ :: s.state == PENDING && event == RUNNER_DECLINED -> target = LLM_FALLBACK; walked = T02
    /* T03 */ :: s.state == RUNNING && event == SUITE_PASSED -> target = VERDICT_PASSED; walked = T03
    /* T04 */ :: s.state == RUNNING && event == SUITE_FAILED -> target = VERDICT_FAILED; walked = T04
    /* T05 */ :: s.state == RUNNING && event == SUITE_NOT_EXECUTED -> target = TOOL_ERROR; walked = T05
    /* T06 */ :: s.state == RUNNING && event == WORKER_LOST -> target = TOOL_ERROR; walked = T06
    /* T07 */ :: s.state == TOOL_ERROR && event == BUDGET_LEFT -> target = DEFERRED; walked = T07
    /* T08 */ :: s.state == TOOL_ERROR && event == BUDGET_SPENT -> target = EXHAUSTED; walked = T08
    /* T09 */ :: s.state == DEFERRED && event == JOB_CLAIMED -> target = RUNNING; walked = T09
    /* T10 */ :: s.state == DEFERRED && event == RUNNER_DECLINED -> target = LLM_FALLBACK; walked = T10
    /* T11 */ :: s.state == VERDICT_PASSED && event == GATE_OPENED -> target = ADVANCED; walked = T11
    /* T12 */ :: s.state == VERDICT_PASSED && event == GATE_REFUSED -> target = ROLLED_BACK; walked = T12
    /* T13 */ :: s.state == VERDICT_FAILED && event == GATE_REFUSED -> target = ROLLED_BACK; walked = T13
    /* T14 */ :: s.state == EXHAUSTED && event == GATE_REFUSED -> target = FAILED_CLOSED; walked = T14
    /* T15 */ :: s.state == PENDING && event == CANCEL_REQUESTED -> target = CANCELLED; walked = T15
    /* T16 */ :: s.state == RUNNING && event == CANCEL_REQUESTED -> target = CANCELLED; walked = T16
    /* T17 */ :: s.state == DEFERRED && event == CANCEL_REQUESTED -> target = CANCELLED; walked = T17
    /* T18 */ :: s.state == RUNNING && event == RUN_ADOPTED -> target = RUNNING; walked = T18
    :: else -> walked = UNWALKED
    fi
}

/* What a worker owes after a row was walked. SPAWN_AGENT is the host's to perform. */
inline owe() {
    if
    :: s.walked == T01 || s.walked == T09 -> effect = RUN_SUITE
    :: s.walked == T18 -> effect = AWAIT_RUN
    :: s.walked == T05 || s.walked == T06 -> effect = SPEND_BUDGET
    :: s.walked == T07 -> effect = REQUEUE_JOB
    :: s.walked == T03 || s.walked == T04 || s.walked == T08 -> effect = HAND_OVER
    :: s.walked == T15 || s.walked == T16 || s.walked == T17 -> effect = REAP_RUN
    :: else -> effect = NONE
    fi
}

inline check(property, condition) {
    property = (condition);
    assert(property)
}

inline copy(to, from) {
    to.state = from.state;
    to.version = from.version;
    to.runs = from.runs;
    to.adoptions = from.adoptions;
    to.walked = from.walked
}

/* What a process knows ends with its launch; small states are few states. */
inline forget() {
    s.state = PENDING;
    s.version = 0;
    s.runs = 0;
    s.adoptions = 0;
    s.walked = UNWALKED;
    event = 0;
    duplicate = false;
    misconfigured = false
}

inline bury() {
    owner = (owner == role -> NOBODY : owner);
    claimed_by = (claimed_by == role -> NOBODY : claimed_by)
}

/* Suites.condition() closes a run that nobody supervises: it can start no more. */
inline close_run() {
    if
    :: suite[s.runs] == UNBORN || suite[s.runs] == STARTING -> suite[s.runs] = CLOSED
    :: else
    fi
}

/* Suites.reap(): a supervisor that is told to stop leaves a result, orphans leave none. */
inline reap_run() {
    if
    :: suite[s.runs] == LIVE -> suite[s.runs] = NOT_EXECUTED; living--
    :: suite[s.runs] == ORPHANED -> suite[s.runs] = CLOSED; living--
    :: else
    fi
}

/* A worker process or, once, the process by which a person cancels. */
proctype Hand(byte role) {
    Snapshot s;
    mtype:Event event;
    bool duplicate, misconfigured;

idle:
    atomic {
        if
        :: role == PERSON ->
            if
            :: copy(s, row); event = CANCEL_REQUESTED; goto ask
            :: bury(); goto end_here
            fi
        :: role != PERSON && has_ended ->
            check(ended_job_is_terminal, is_terminal(row.state) || row.version == 0);
            goto end_here
        /* The host's claim. */
        :: role != PERSON && status == QUEUED -> status = TAKEN; claimed_by = role
        /* The launch once more, whoever has claimed the job. */
        :: role != PERSON && duplicates < DUPLICATES -> duplicates++; duplicate = true
        /* The host queues again what a dead worker had claimed. */
        :: role != PERSON && status == TAKEN && claimed_by == NOBODY -> status = QUEUED; goto idle
        /* recover(). */
        :: role != PERSON && row.version && row.state != LLM_FALLBACK && !has_ended &&
            !(row.state == DEFERRED && (status == QUEUED || queued_again)) &&
            is_abandoned -> copy(s, row); goto take_up
        /* Nothing else can happen: the next deployment restarts this worker. */
        :: timeout && role != PERSON && !restarted[role] ->
            restarted[role] = true; bury(); goto idle
        fi
    }

    {
        /* launch() */
        atomic {
            copy(s, row);
            if
            :: s.version == 0 && off_at_first -> goto spawn_agent
            :: s.version == 0 && !off_at_first -> event = JOB_CLAIMED
            :: s.version == 0 && !off_at_first -> event = RUNNER_DECLINED
            :: s.state == LLM_FALLBACK -> goto spawn_agent
            :: s.state == DEFERRED -> event = RUNNER_DECLINED
            :: s.state == DEFERRED -> event = JOB_CLAIMED
            :: s.state == DEFERRED -> event = JOB_CLAIMED; misconfigured = true
            /* Too early: whoever has the claim gives it back. */
            :: s.state == DEFERRED && duplicate -> goto put_back
            :: s.version && s.state != LLM_FALLBACK && s.state != DEFERRED ->
                if
                :: is_abandoned -> goto take_up
                :: else -> forget(); goto idle
                fi
            fi;
            goto step
        }

take_up:
        atomic {
            if
            :: s.state != RUNNING -> goto drive
            :: s.state == RUNNING && s.adoptions < ADOPTIONS_MAX &&
                (suite[s.runs] == LIVE || has_result(s.runs)) -> event = RUN_ADOPTED; goto step
            :: else -> close_run()
            fi
        }
        atomic { reap_run(); event = WORKER_LOST }

        /* move(): the table, and one compare-and-swap on the row. */
step:
        atomic {
            duplicate = false;
            if
            /* The gate opened, but not for what was written: its transaction is undone. */
            :: event == GATE_OPENED && !is_ours(artifact) -> goto write
            :: else
            fi;
ask:
            walk();
            if
            /* The gate opened against the verdict: the same. */
            :: walked == UNWALKED && is_gates -> goto write
            :: walked == UNWALKED && role == PERSON -> bury(); forget(); goto end_here
            :: else
            fi;
            check(table_answers_every_event, walked != UNWALKED);
            if
            :: row.version != s.version -> forget(); goto idle
            :: else
            fi;
            check(terminal_is_forever, !is_terminal(row.state));
            switched_off = switched_off || (event == RUNNER_DECLINED && s.runs);
            s.state = target;
            s.version++;
            s.walked = walked;
            s.runs = s.runs + (event == JOB_CLAIMED -> 1 : 0);
            s.adoptions = s.adoptions + (event == RUN_ADOPTED -> 1 : 0);
            copy(row, s);
            queued_again = false;
            owner = role;
            judged = judged || is_verdict(s.state);
            check(budget_is_total, s.runs <= RUNS_MAX);
            if
            /* In the same transaction the work item moves and the job ends. */
            :: is_gates ->
                status = DONE;
                moves++;
                check(work_item_moves_once, moves == 1);
                check(no_process_outlives_its_run, living == 0);
                check(no_silent_advance, event != GATE_OPENED ||
                    (suite[s.runs] == PASSED && artifact == OUR_SUCCESS))
            /* Nobody asks for this run any more. */
            :: s.state == TOOL_ERROR && !goes_on(s.runs) -> suite[s.runs] = CLOSED
            :: else
            fi;
            if
            :: event == RUNNER_DECLINED -> goto spawn_agent
            :: event == JOB_CLAIMED && misconfigured ->
                misconfigured = false; event = SUITE_NOT_EXECUTED; goto step
            :: else
            fi;
drive:
            event = 0;
            duplicate = false;
            owe();
            if
            :: effect == RUN_SUITE -> goto set_aside
            :: effect == AWAIT_RUN -> goto await
            :: effect == SPEND_BUDGET && s.runs < RUNS_MAX -> event = BUDGET_LEFT; goto step
            /* The last run, or a tool error that no further run can mend. */
            :: effect == SPEND_BUDGET -> event = BUDGET_SPENT; goto step
            :: effect == HAND_OVER -> goto write
            :: effect == REQUEUE_JOB -> goto requeue
            :: effect == REAP_RUN -> goto stop
            :: effect == NONE -> forget(); goto idle
            fi
        }

set_aside:
        atomic { artifact = ABSENT }
        /* Suites.start(), which may fail, and must once the run was closed. */
        atomic {
            if
            :: suite[s.runs] == UNBORN -> suite[s.runs] = STARTING
            :: suite[s.runs] == UNBORN || suite[s.runs] == CLOSED ->
                suite[s.runs] = CLOSED; event = SUITE_NOT_EXECUTED; goto step
            fi
        }

        /* Suites.await_report() and the judgement. */
await:
        atomic {
            if
            :: suite[s.runs] == PASSED -> event = SUITE_PASSED
            :: suite[s.runs] == FAILED -> event = SUITE_FAILED
            :: suite[s.runs] == NOT_EXECUTED || suite[s.runs] == CLOSED ->
                event = SUITE_NOT_EXECUTED
            :: suite[s.runs] == ORPHANED ->
                suite[s.runs] = CLOSED; living--; event = SUITE_NOT_EXECUTED
            fi;
            goto step
        }

        /* The status word is made from the exit code. A suite that failed by its report
         * may have exited with 0, so only a passed state may ask for the word. */
write:
        atomic {
            event = 0;
            if
            :: s.state == VERDICT_PASSED -> artifact = OUR_SUCCESS
            :: s.state != VERDICT_PASSED || suite[s.runs] != PASSED -> artifact = OUR_FAILED
            fi
        }
        /* The gate reads. What it wants to move is moved in `step`. */
        atomic {
            event = (is_success(artifact) -> GATE_OPENED : GATE_REFUSED);
            goto step
        }

        /* Once: a job that was queued again may have been claimed since. */
requeue:
        atomic {
            if
            :: queued_again -> forget(); goto idle
            :: else
            fi;
put_back:
            status = (row.version == s.version -> QUEUED : status);
            queued_again = queued_again || row.version == s.version;
            forget();
            goto idle
        }

stop:
        atomic { close_run(); reap_run() }
        atomic {
            if
            :: row.version == s.version ->
                status = WITHDRAWN;
                check(no_process_outlives_its_run, living == 0)
            :: else
            fi;
            forget();
            goto idle
        }

        /* Declined: the host's _spawn() and, when the agent has ended, the host's gate. */
spawn_agent:
        atomic {
            check(one_producer_per_launch,
                living == 0 && !judged && (row.runs == 0 || switched_off) &&
                (!agent_started || crashes || duplicates));
            agent_started = true;
            artifact = ABSENT;
            forget()
        }
        atomic {
            if
            :: !has_ended ->
                status = DONE;
                moves++;
                check(work_item_moves_once, moves == 1)
            :: else
            fi;
            goto idle
        }
    } unless {
        atomic {
            kill ? eval(role);
            crashes++;
            bury();
            forget();
            if
            :: role == PERSON -> goto end_here
            :: else -> goto idle
            fi
        }
    };

end_here:
    false
}

/* A supervisor takes the run's lock and starts the suite. */
inline spawn(n) {
    suite[n] = LIVE;
    spawned++;
    living++;
    check(budget_is_total, spawned <= row.runs && spawned <= RUNS_MAX);
    check(one_live_run_per_job, living == 1);
    check(stale_artifact_is_never_read, artifact == ABSENT);
    check(one_producer_per_launch, !agent_started)
}

/* Run n: it starts, it may write a SUCCESS of its own, it ends in one of three ways or
 * loses its supervisor, and in all this needs no worker. */
#define RUN_GOES_ON(n) \
    :: atomic { suite[n] == STARTING -> spawn(n) } \
    :: atomic { (suite[n] == LIVE || suite[n] == ORPHANED) && artifact == ABSENT -> \
        artifact = FORGED } \
    :: atomic { suite[n] == LIVE -> suite[n] = PASSED; living-- } \
    :: atomic { suite[n] == LIVE -> suite[n] = FAILED; living-- } \
    :: atomic { suite[n] == LIVE -> suite[n] = NOT_EXECUTED; living-- } \
    :: atomic { suite[n] == LIVE -> suite[n] = ORPHANED }

/* The world: runs, kills, and one artifact lost or altered on its way to the gate. */
init {
    atomic {
        if
        :: artifact = STALE
        :: skip
        fi;
        if
        :: off_at_first = true
        :: skip
        fi;
        run Hand(WORKER_A);
        run Hand(WORKER_B);
        run Hand(PERSON)
    }

end_world:
    do
    RUN_GOES_ON(1)
    RUN_GOES_ON(2)
#if RETRIES > 1
    RUN_GOES_ON(3)
#endif
    :: kill ! (crashes < CRASHES && !has_ended -> WORKER_A : NOBODY)
    :: kill ! (crashes < CRASHES && !has_ended -> WORKER_B : NOBODY)
    :: kill ! (crashes < CRASHES && !has_ended -> PERSON : NOBODY)
    :: atomic { is_ours(artifact) && !altered && !has_ended ->
        altered = true;
        if
        :: artifact = ABSENT
        :: artifact = FORGED
        fi }
    od
}

ltl every_attempt_ends { <> has_ended }
