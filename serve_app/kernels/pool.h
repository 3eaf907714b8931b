/* Threads that wait for the next operator for a moment before they sleep. */
#ifndef PARLEY_POOL_H
#define PARLEY_POOL_H

/* Have at least `threads` threads in all, the caller's included, share the work from now on. */
void pool_grow(int threads);
int pool_threads(void);
/* Call work(data, 0 .. count - 1), in any order and from any of the threads; return when all are done. */
void pool_run(void (*work)(void *data, int index), void *data, int count);

#endif
