/*
 * A stand-in for NVIDIA's management library: the calls that celery_allocator/inventory/nvml.py makes, answered from
 * a script. Built and driven by __init__.py beside this file.
 *
 * The environment variable FAKE_NVML_SCRIPT names the script. Its lines, with fields divided by '|':
 *
 *     init|CODE                                         what opening the library returns (0: success)
 *     gpu|UUID|NAME|MEMORY_BYTES|MASK|HANDLE|MEMORY|AFFINITY
 *
 * MASK is the core mask in hexadecimal, lowest word first, words divided by ','. HANDLE, MEMORY and AFFINITY are the
 * codes that these three queries return. Codes are those of NVML.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7, MAX_GPUS = 16, MAX_WORDS = 32 };

struct gpu {
    char uuid[96], name[96];
    unsigned long long total, mask[MAX_WORDS];
    int handle_code, memory_code, affinity_code;
};

struct memory {
    unsigned long long total, free, used;
};

static struct gpu gpus[MAX_GPUS];
static unsigned int gpu_count;
static int init_code, open_count;

static void copy_text(char *target, size_t room, const char *source) { snprintf(target, room, "%s", source); }

static void read_mask(struct gpu *gpu, char *text) {
    for (int word = 0; word < MAX_WORDS && text && *text; word++) {
        gpu->mask[word] = strtoull(text, &text, 16);
        if (*text == ',')
            text++;
    }
}

static void read_gpu(char *line) {
    char *field[8] = {0};
    for (int i = 0; i < 8; i++)
        if (!(field[i] = strsep(&line, "|")))
            abort(); /* a mistake in the test, not a scenario */
    struct gpu *gpu = &gpus[gpu_count++];
    memset(gpu, 0, sizeof *gpu);
    copy_text(gpu->uuid, sizeof gpu->uuid, field[1]);
    copy_text(gpu->name, sizeof gpu->name, field[2]);
    gpu->total = strtoull(field[3], NULL, 10);
    read_mask(gpu, field[4]);
    gpu->handle_code = atoi(field[5]);
    gpu->memory_code = atoi(field[6]);
    gpu->affinity_code = atoi(field[7]);
}

static void read_script(void) {
    char line[1024];
    const char *path = getenv("FAKE_NVML_SCRIPT");
    FILE *script = path ? fopen(path, "r") : NULL;
    if (!script)
        abort();
    gpu_count = 0;
    init_code = SUCCESS;
    while (fgets(line, sizeof line, script)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "init|", 5))
            init_code = atoi(line + 5);
        else if (!strncmp(line, "gpu|", 4) && gpu_count < MAX_GPUS)
            read_gpu(line);
    }
    fclose(script);
}

int nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    read_script();
    if (init_code == SUCCESS)
        open_count++;
    return init_code;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!open_count)
        return UNINITIALIZED;
    open_count--;
    return SUCCESS;
}

/* Not NVML's: how often the library is open now. */
int fakeOpenCount(void) { return open_count; }

const char *nvmlErrorString(int code) {
    static char text[64];
    snprintf(text, sizeof text, "scripted error %d", code);
    return text;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    if (!open_count)
        return UNINITIALIZED;
    *count = gpu_count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, struct gpu **handle) {
    if (!open_count)
        return UNINITIALIZED;
    if (index >= gpu_count)
        return INVALID_ARGUMENT;
    *handle = &gpus[index];
    return gpus[index].handle_code;
}

static int give_text(char *target, unsigned int room, const char *source) {
    if (!open_count)
        return UNINITIALIZED;
    if (strlen(source) >= room)
        return INSUFFICIENT_SIZE;
    copy_text(target, room, source);
    return SUCCESS;
}

int nvmlDeviceGetUUID(struct gpu *gpu, char *uuid, unsigned int room) { return give_text(uuid, room, gpu->uuid); }

int nvmlDeviceGetName(struct gpu *gpu, char *name, unsigned int room) { return give_text(name, room, gpu->name); }

int nvmlDeviceGetMemoryInfo(struct gpu *gpu, struct memory *memory) {
    if (!open_count)
        return UNINITIALIZED;
    if (gpu->memory_code)
        return gpu->memory_code;
    memory->total = gpu->total;
    memory->free = gpu->total;
    memory->used = 0;
    return SUCCESS;
}

int nvmlDeviceGetCpuAffinity(struct gpu *gpu, unsigned int words, unsigned long *set) {
    if (!open_count)
        return UNINITIALIZED;
    if (gpu->affinity_code)
        return gpu->affinity_code;
    for (unsigned int word = 0; word < words; word++)
        set[word] = word < MAX_WORDS ? (unsigned long)gpu->mask[word] : 0;
    return SUCCESS;
}
