/*
 * A stand-in for NVIDIA's management library: the calls that celery_allocator/inventory/nvml.py makes, answered from
 * a script. Built and driven by __init__.py beside this file.
 *
 * The environment variable FAKE_NVML_SCRIPT names the script. Its lines, with fields divided by '|':
 *
 *     init|CODE                                         what opening the library returns (0: success)
 *     gpu|UUID|NAME|MEMORY_BYTES|MASK|HANDLE|MEMORY|AFFINITY
 *     now|INDEX|USED_BYTES|UTILIZATION|TEMPERATURE|MILLIWATTS|CODE
 *     process|INDEX|PID|BYTES                           (BYTES -1: the driver does not tell)
 *
 * MASK is the core mask in hexadecimal, lowest word first, words divided by ','. HANDLE, MEMORY and AFFINITY are the
 * codes that these three queries return. Codes are those of NVML. A GPU without a line `now` uses nothing; CODE is
 * what the queries of utilization, temperature, power and processes return. The script is read again whenever the library is
 * opened, so that a test can change it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7, MAX_GPUS = 16, MAX_WORDS = 32,
       MAX_PROCESSES = 64 };

/* What a process uses, as version 2 and 3 of the query have it. */
struct process {
    unsigned int pid;
    unsigned long long used;
    unsigned int gpu_instance, compute_instance;
};

struct gpu {
    char uuid[96], name[96];
    unsigned long long total, mask[MAX_WORDS];
    int handle_code, memory_code, affinity_code, now_code;
    unsigned long long used;
    unsigned int utilization, temperature, milliwatts, process_count;
    struct process processes[MAX_PROCESSES];
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

static void read_now(char *line) {
    unsigned int index;
    unsigned long long used;
    struct gpu now;
    if (sscanf(line, "now|%u|%llu|%u|%u|%u|%d", &index, &used, &now.utilization, &now.temperature, &now.milliwatts,
               &now.now_code) != 6 ||
        index >= gpu_count)
        abort();
    struct gpu *gpu = &gpus[index];
    gpu->used = used;
    gpu->utilization = now.utilization;
    gpu->temperature = now.temperature;
    gpu->milliwatts = now.milliwatts;
    gpu->now_code = now.now_code;
}

static void read_process(char *line) {
    unsigned int index, pid;
    long long used;
    if (sscanf(line, "process|%u|%u|%lld", &index, &pid, &used) != 3 || index >= gpu_count)
        abort();
    struct gpu *gpu = &gpus[index];
    if (gpu->process_count < MAX_PROCESSES) {
        struct process *process = &gpu->processes[gpu->process_count++];
        process->pid = pid;
        process->used = (unsigned long long)used; /* -1 is NVML_VALUE_NOT_AVAILABLE */
    }
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
        else if (!strncmp(line, "now|", 4))
            read_now(line);
        else if (!strncmp(line, "process|", 8))
            read_process(line);
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

int nvmlDeviceGetHandleByUUID(const char *uuid, struct gpu **handle) {
    if (!open_count)
        return UNINITIALIZED;
    for (unsigned int index = 0; index < gpu_count; index++)
        if (!strcmp(gpus[index].uuid, uuid)) {
            *handle = &gpus[index];
            return gpus[index].handle_code;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(struct gpu *gpu, char *uuid, unsigned int room) { return give_text(uuid, room, gpu->uuid); }

int nvmlDeviceGetName(struct gpu *gpu, char *name, unsigned int room) { return give_text(name, room, gpu->name); }

int nvmlDeviceGetMemoryInfo(struct gpu *gpu, struct memory *memory) {
    if (!open_count)
        return UNINITIALIZED;
    if (gpu->memory_code)
        return gpu->memory_code;
    memory->total = gpu->total;
    memory->free = gpu->total - gpu->used;
    memory->used = gpu->used;
    return SUCCESS;
}

struct memory_v2 {
    unsigned int version;
    unsigned long long total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo_v2(struct gpu *gpu, struct memory_v2 *memory) {
    struct memory first;
    int code = nvmlDeviceGetMemoryInfo(gpu, &first);
    if (code)
        return code;
    memory->total = first.total;
    memory->reserved = 0;
    memory->free = first.free;
    memory->used = first.used;
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

int nvmlDeviceGetUtilizationRates(struct gpu *gpu, unsigned int *rates) {
    rates[0] = gpu->utilization;
    rates[1] = 0; /* of the memory's bandwidth */
    return gpu->now_code;
}

int nvmlDeviceGetTemperature(struct gpu *gpu, unsigned int sensor, unsigned int *celsius) {
    (void)sensor;
    *celsius = gpu->temperature;
    return gpu->now_code;
}

int nvmlDeviceGetPowerUsage(struct gpu *gpu, unsigned int *milliwatts) {
    *milliwatts = gpu->milliwatts;
    return gpu->now_code;
}

int nvmlDeviceGetComputeRunningProcesses_v3(struct gpu *gpu, unsigned int *count, struct process *processes) {
    if (gpu->now_code)
        return gpu->now_code;
    unsigned int room = *count;
    *count = gpu->process_count;
    if (!gpu->process_count)
        return SUCCESS;
    if (room < gpu->process_count)
        return INSUFFICIENT_SIZE;
    memcpy(processes, gpu->processes, gpu->process_count * sizeof *processes);
    return SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(struct gpu *gpu, unsigned int *count, struct process *processes) {
    (void)processes;
    *count = 0;
    return gpu->now_code;
}
