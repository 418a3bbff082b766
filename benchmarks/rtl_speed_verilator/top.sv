// The array between registers, as Verilator simulates it fastest.
//
// Masks and what the feeders give come from registers and what is written goes to registers, so that in each clock cycle nothing
// is evaluated twice. There are no upsets and no faults in multipliers: their masks are constant.

module top #(
    parameter  int ROWS = 32,
    parameter  int COLS = 32,
    localparam int WEIGHT_BITS = 8,
    localparam int ACT_BITS = 8,
    localparam int ACC_BITS = 32,
    localparam int ACC_DEPTH = 64,
    localparam int PRODUCT_BITS = WEIGHT_BITS + ACT_BITS,
    localparam int ROW_BITS = $clog2(ACC_DEPTH),
    localparam int PES = ROWS * COLS
) (
    input logic clock,
    input logic set_masks,
    input logic reset,
    input logic stream,
    input logic load,
    input logic load_last,
    input logic write,
    input logic [ROW_BITS-1:0] write_row,
    input logic [ROWS*ACT_BITS-1:0] activation_west,
    input logic [COLS*WEIGHT_BITS-1:0] weight_north,
    input logic [PES-1:0] bypass,
    input logic [PES*WEIGHT_BITS-1:0] weight_clear,
    input logic [PES*WEIGHT_BITS-1:0] weight_set,
    input logic [PES*WEIGHT_BITS-1:0] weight_load_clear,
    input logic [PES*WEIGHT_BITS-1:0] weight_load_set,
    input logic [PES*ACT_BITS-1:0] activation_clear,
    input logic [PES*ACT_BITS-1:0] activation_set,
    input logic [PES*PRODUCT_BITS-1:0] product_clear,
    input logic [PES*PRODUCT_BITS-1:0] product_set,
    input logic [PES*ACC_BITS-1:0] psum_clear,
    input logic [PES*ACC_BITS-1:0] psum_set,
    input logic [COLS*ACC_BITS-1:0] accumulator_clear,
    input logic [COLS*ACC_BITS-1:0] accumulator_set,
    output logic [COLS-1:0] written,
    output logic [COLS*ROW_BITS-1:0] written_row,
    output logic [COLS*ACC_BITS-1:0] written_data
);

  logic reset_q, stream_q, load_q, load_last_q, write_q;
  logic [ROW_BITS-1:0] write_row_q;
  logic [ROWS*ACT_BITS-1:0] activation_west_q;
  logic [COLS*WEIGHT_BITS-1:0] weight_north_q;
  always_ff @(posedge clock) begin
    {reset_q, stream_q, load_q, load_last_q, write_q} <= {reset, stream, load, load_last, write};
    write_row_q <= write_row;
    activation_west_q <= activation_west;
    weight_north_q <= weight_north;
  end

  logic [PES-1:0] bypass_q;
  logic [PES*WEIGHT_BITS-1:0] weight_clear_q, weight_set_q, weight_load_clear_q, weight_load_set_q;
  logic [PES*ACT_BITS-1:0] activation_clear_q, activation_set_q;
  logic [PES*PRODUCT_BITS-1:0] product_clear_q, product_set_q;
  logic [PES*ACC_BITS-1:0] psum_clear_q, psum_set_q;
  logic [COLS*ACC_BITS-1:0] accumulator_clear_q, accumulator_set_q;
  always_ff @(posedge clock) begin
    if (set_masks) begin
      bypass_q <= bypass;
      weight_clear_q <= weight_clear;
      weight_set_q <= weight_set;
      weight_load_clear_q <= weight_load_clear;
      weight_load_set_q <= weight_load_set;
      activation_clear_q <= activation_clear;
      activation_set_q <= activation_set;
      product_clear_q <= product_clear;
      product_set_q <= product_set;
      psum_clear_q <= psum_clear;
      psum_set_q <= psum_set;
      accumulator_clear_q <= accumulator_clear;
      accumulator_set_q <= accumulator_set;
    end
  end

  wire [COLS-1:0] written_now;
  wire [COLS*ROW_BITS-1:0] written_row_now;
  wire [COLS*ACC_BITS-1:0] written_data_now;
  always_ff @(posedge clock) begin
    written <= written_now;
    written_row <= written_row_now;
    written_data <= written_data_now;
  end

  systolic_array #(
      .ROWS(ROWS),
      .COLS(COLS),
      .WEIGHT_BITS(WEIGHT_BITS),
      .ACT_BITS(ACT_BITS),
      .ACT_SIGNED(1),
      .ACC_BITS(ACC_BITS),
      .ACC_DEPTH(ACC_DEPTH),
      .MULTIPLIER_LOCATIONS(1)
  ) array (
      .clock(clock),
      .reset(reset_q),
      .stream(stream_q),
      .load(load_q),
      .load_last(load_last_q),
      .load_west('0),
      .switch_west('0),
      .activation_west(activation_west_q),
      .weight_north(weight_north_q),
      .write(write_q),
      .add(1'b0),
      .write_row(write_row_q),
      .bypass(bypass_q),
      .weight_invert('0),
      .weight_clear(weight_clear_q),
      .weight_set(weight_set_q),
      .weight_load_invert('0),
      .weight_load_clear(weight_load_clear_q),
      .weight_load_set(weight_load_set_q),
      .activation_invert('0),
      .activation_clear(activation_clear_q),
      .activation_set(activation_set_q),
      .product_invert('0),
      .product_clear(product_clear_q),
      .product_set(product_set_q),
      .psum_invert('0),
      .psum_clear(psum_clear_q),
      .psum_set(psum_set_q),
      .multiplier_invert('0),
      .multiplier_clear('0),
      .multiplier_set('0),
      .accumulator_invert('0),
      .accumulator_clear(accumulator_clear_q),
      .accumulator_set(accumulator_set_q),
      .written(written_now),
      .written_row(written_row_now),
      .written_data(written_data_now)
  );

endmodule
