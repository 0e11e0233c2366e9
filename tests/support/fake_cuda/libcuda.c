/* A CUDA driver of two calls: whether it was initialised, which a fork takes along. */

static int initialised;

int cuInit(unsigned int flags)
{
    (void)flags;
    initialised = 1;
    return 0;
}

int cuCtxGetCurrent(void **context)
{
    *context = 0;
    return initialised ? 0 : 3;
}
