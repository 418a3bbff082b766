// The accumulator below one column: an entry for each row of X, which sums the outputs of the k-folds.
//
// `write` and what goes with it enter column 0 in the cycle in which an output is on the adder of the last row, and travel one
// column east in each cycle, as the outputs do.

module column_accumulator #(
    parameter  int ACC_BITS = 32,
    parameter  int DEPTH = 64,
    localparam int ROW_BITS = $clog2(DEPTH)
) (
    input logic clock,
    input logic reset,

    input  logic write_west,
    input  logic add_west,                // add to the entry; otherwise it starts from 0
    input  logic [ROW_BITS-1:0] row_west, // the entry: the row of X
    output logic write_east,
    output logic add_east,
    output logic [ROW_BITS-1:0] row_east,

    input logic [ACC_BITS-1:0] psum_leaving,
    input logic [ACC_BITS-1:0] accumulator_invert,
    input logic [ACC_BITS-1:0] accumulator_clear,
    input logic [ACC_BITS-1:0] accumulator_set,

    // What is stored at the end of this cycle; after the last k-fold, the output.
    output logic written,
    output logic [ROW_BITS-1:0] written_row,
    output logic [ACC_BITS-1:0] written_data
);

  logic [ACC_BITS-1:0] entries[0:DEPTH-1];

  wire [ACC_BITS-1:0] stored = add_west ? entries[row_west] : '0;
  wire [ACC_BITS-1:0] summed = stored + psum_leaving;
  assign written = write_west;
  assign written_row = row_west;
  assign written_data = ((summed ^ accumulator_invert) & ~accumulator_clear) | accumulator_set;

  always_ff @(posedge clock) if (write_west) entries[row_west] <= written_data;

  always_ff @(posedge clock) begin
    if (reset) begin
      write_east <= 1'b0;
      add_east <= 1'b0;
      row_east <= '0;
    end else begin
      write_east <= write_west;
      add_east <= add_west;
      row_east <= row_west;
    end
  end

endmodule
